"""How a command ends badly: one clear message, and an exit status that means one thing."""

import os
import select
import sys
import tempfile
import traceback
from contextlib import suppress

import click

from tailorpo_trainer.errors import ExitCode, StoppedError, as_user_error

BROKEN_PIPE = 141
"""128 + SIGPIPE, as for any program whose reader has left."""


def say(error: BaseException) -> int:
    """Tell the user on standard error what went wrong; returns the exit status."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError) and _reader_left():
        return BROKEN_PIPE
    known = as_user_error(error)
    if known is None:
        return _crash(error)
    # A stop is no error; a document's problems begin with file and line, for editors to jump to (their class
    # is not imported here: it brings pydantic).
    plain = isinstance(known, StoppedError) or hasattr(known, "problems")
    message(str(known), "" if plain else "error")
    return known.exit_code


def last_word(error: BaseException, status: int) -> None:
    """Leave a run's end where a kubelet reads it (`docs/progress.md`). Never fails."""
    with suppress(Exception):
        from tailorpo_trainer.spec.progress import Progress
        from tailorpo_trainer.telemetry import termination

        if isinstance(error, click.UsageError):
            termination.begin(Progress())  # no run began
        termination.last_word(error, status)


def message(text: str, prefix: str = "") -> None:
    """A message on standard error, its prefix in red on a terminal (unless NO_COLOR is set)."""
    sign = click.style(f"{prefix}: ", fg="red", bold=True) if prefix else ""
    click.echo(f"{sign}{text}", err=True, color=False if os.environ.get("NO_COLOR") else None)


def _crash(error: BaseException) -> int:
    """A bug of ours: one sentence, and the traceback where it can be asked for."""
    details = "".join(traceback.format_exception(error))
    summary = f"internal error: {type(error).__name__}: {_first_line(error)}"
    if os.environ.get("TAILORPO_DEBUG") == "1":
        message(details)
        message(summary)
        return ExitCode.INTERNAL
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="tailorpo-crash-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(details)
        message(f"{summary}\nThis is a bug of tailorpo. Please report it with this log: {file.name}")
    except OSError:
        message(f"{details}\n{summary}\nThis is a bug of tailorpo. Please report it with the lines above.")
    return ExitCode.INTERNAL


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _reader_left() -> bool:
    """Whether it is standard output whose reader has gone, and not some connection of ours."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        return False
    # Else the interpreter flushes once more, at its end, and complains.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
