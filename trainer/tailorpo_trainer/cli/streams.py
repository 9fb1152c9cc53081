"""Standard streams that may be closed, full or gone: a run goes on without its display, and no command falls over."""

import io
import os
import sys
from typing import TextIO

STANDARD_ERROR = 2


class Lenient(io.TextIOWrapper):
    """Standard error that drops what cannot be written, as when the terminal or the reader of a pipe is gone."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            _discard(STANDARD_ERROR)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            _discard(STANDARD_ERROR)


def prepare() -> None:
    """Replace streams that this process was started without, and standard error by one that never raises.

    Standard output stays as it is, because a command whose result cannot be written has failed.
    """
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = _null()
    if sys.stderr is None:
        sys.stderr = _null()
    elif sys.stderr is sys.__stderr__ and not isinstance(sys.stderr, Lenient):
        buffer = io.BufferedWriter(io.FileIO(STANDARD_ERROR, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        sys.stderr = Lenient(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _null() -> TextIO:
    # At least descriptor 3: a file that gets the number of a closed stream would receive what libraries print there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        pass
    return open(descriptor, "w", encoding="utf-8", errors="replace")


def _discard(descriptor: int) -> None:
    """From here on all that is written there vanishes; also at the end, when the interpreter flushes the streams."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
