"""The termination message of a process: JSON of at most 4096 bytes for a kubelet, or for the launcher of several ranks.

It is kept current while training goes on, since a process that is killed for its memory cannot write anything more.
"""

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tailorpo_trainer import errors, files
from tailorpo_trainer.results.run_folder import overwrite, write_json
from tailorpo_trainer.spec.progress import MESSAGE_LENGTH, Progress, shorten

LIMIT = 4096
"""Bytes that a kubelet reads of a container's termination message."""

ABORT_SECONDS = 3.0
"""How long the end of a process that hangs waits for the disk of `progress.json`."""

VARIABLE = "TAILORPO_TERMINATION_LOG"
DEFAULT = Path("/dev/termination-log")

DROPPED_FIRST = ("resumedFrom", "adapter", "message", "checkpoint")
"""Keys that are left out of a message that is too long, in this order."""


class TerminationReporter:
    """Writes how far this process' run is to the termination message, and to `progress.json` once `keep_in` names it.

    A process has one. The training and the checkpoint thread both change `progress`; the metrics server reads it.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self._file: Path | None = None
        self._lock = threading.RLock()  # reentrant: a second Ctrl-C may interrupt a thread that holds it

    def report(self, progress: Progress) -> None:
        """Replace what is known of the run, and write it. Raises if `progress.json` cannot be written."""
        with self._lock:
            self.progress = progress
            write(progress)
            if self._file is not None:
                write_json(self._file, progress.to_dict())

    def update(self, change: Callable[[Progress], Progress]) -> None:
        """Report what `change` makes of the newest progress. No report of another thread is lost in between."""
        with self._lock:
            self.report(change(self.progress))

    def keep_in(self, file: Path) -> None:
        """Write every report to this file too, from the newest one on."""
        with self._lock:
            self._file = file
            self.report(self.progress)

    def release(self) -> None:
        """Write no more to the file of `keep_in`, which another run has taken over."""
        with self._lock:
            self._file = None

    def end(self, error: BaseException, status: int | None = None) -> None:
        """Report that this error ends the process. An earlier end with the same exit status stays. Never fails."""
        status = errors.status(error) if status is None else status
        with self._lock:
            last = self.progress
            if last.error is None or last.error.exit_code != status:
                last = last.ended(error, status)
            try:
                with files.one_try():
                    self.report(last)
            except (OSError, errors.TailorPOError):
                if self._file is not None:  # the disk is full, but a file that exists can still be changed in place
                    with suppress(OSError):
                        overwrite(self._file, (json.dumps(last.to_dict(), ensure_ascii=False) + "\n").encode())

    def abort(self, error: BaseException, status: int) -> None:
        """Write an end to the termination message, without waiting for a thread or a disk that may hang.

        `progress.json` gets it too, if its disk answers within some seconds.
        """
        last = self.progress.ended(error, status)
        write(last)
        if (file := self._file) is not None:
            thread = threading.Thread(target=_write_last, args=(file, last), daemon=True)
            thread.start()
            thread.join(ABORT_SECONDS)


def targets() -> list[Path]:
    """The files that `$TAILORPO_TERMINATION_LOG` names (empty: none); by default the one that a pod's container has."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return [Path(part) for part in named.split(os.pathsep) if part]
    # Of several processes that torchrun started in one pod, only the first may write.
    writes = os.environ.get("LOCAL_RANK", "0") == "0"
    return [DEFAULT] if writes and os.access(DEFAULT, os.W_OK) else []


def write(progress: Progress, path: Path | None = None) -> None:
    """Replace what is at `path` (default: `targets()`), in place: a kubelet reads the file it mounted. Never fails."""
    for target in [path] if path else targets():
        with suppress(OSError):  # the exit status still says why the process ended
            overwrite(target, encode(progress))


def _write_last(file: Path, progress: Progress) -> None:
    with files.one_try(), suppress(errors.TailorPOError):
        write_json(file, progress.to_dict())


def read(path: Path) -> Progress | None:
    """The message that `write` wrote; None if there is none."""
    try:
        return Progress.read(path.read_bytes())
    except OSError:
        return None


def encode(progress: Progress) -> bytes:
    """At most `LIMIT` bytes of JSON: the error's text is shortened first, then addresses are left out."""
    for dropped in range(len(DROPPED_FIRST) + 1):
        values = progress.to_dict()
        for key in DROPPED_FIRST[:dropped]:
            values.pop(key, None)
        data = _fitted(values)
        if len(data) <= LIMIT:
            return data
    raise AssertionError("every text of a progress is bounded")


def _fitted(values: dict[str, Any]) -> bytes:
    """The values as JSON with the longest error text that fits, at least `MESSAGE_LENGTH` characters of it."""
    text = values.get("error", {}).get("text", "")

    def dump(length: int) -> bytes:
        if text:
            values["error"]["text"] = shorten(text, length)
        return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    shortest = min(len(text), MESSAGE_LENGTH)
    more = bisect_right(range(shortest + 1, len(text) + 1), LIMIT, key=lambda length: len(dump(length)))
    return dump(shortest + more)
