"""How a command ends with an error: one clear message, and an exit status with one meaning."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

import click

from tailorpo_trainer import terminal
from tailorpo_trainer.errors import ExitCode, StoppedError, as_user_error

if TYPE_CHECKING:
    from tailorpo_trainer.telemetry.termination import TerminationReporter

BROKEN_PIPE = 141
"""128 + SIGPIPE, as for any program that writes to a closed pipe."""


_interrupted = False


def note_interrupts() -> None:
    """Remember a Ctrl-C: a library that is being imported may turn the KeyboardInterrupt into an error of its own."""

    def handle(number: int, frame: FrameType | None) -> None:
        global _interrupted
        _interrupted = True
        raise KeyboardInterrupt

    # Not off the main thread, where Python allows no handler, nor where the caller has one.
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)


def show(error: BaseException) -> int:
    """Print on standard error what went wrong; returns the exit status."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, KeyboardInterrupt | click.Abort) or _interrupted:
        return ExitCode.INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError) and _stdout_is_closed():
        return BROKEN_PIPE
    known = as_user_error(error)
    if known is None:
        return _crash(error)
    # No prefix for a stop, which is no error, nor for a document's problems, which begin with file and line for editors
    # to jump to. Their class is not imported here, since it imports pydantic.
    plain = isinstance(known, StoppedError) or hasattr(known, "problems")
    message(str(known), "" if plain else "error")
    return known.exit_code


def report_end(error: BaseException, status: int, reporter: TerminationReporter | None) -> None:
    """Write why a run ended where a kubelet reads it (`docs/progress.md`). Never fails.

    reporter: of the run; None if no run began.
    """
    with suppress(Exception):
        from tailorpo_trainer.telemetry.termination import TerminationReporter

        (reporter or TerminationReporter()).end(error, status)


def message(text: str, prefix: str = "") -> None:
    """A message on standard error; on a terminal with whole words, and its prefix in red (unless NO_COLOR is set)."""
    columns = terminal.width(sys.stderr)
    if columns is not None:
        begin = f"{prefix}: " if prefix else ""
        text = terminal.wrap(begin + text, columns).removeprefix(begin)
    sign = click.style(f"{prefix}: ", fg="red", bold=True) if prefix else ""
    click.echo(f"{sign}{text}", err=True, color=False if os.environ.get("NO_COLOR") else None)


def _crash(error: BaseException) -> int:
    """Print one sentence for an unexpected error, and keep the traceback in a file; returns the exit status."""
    details = "".join(traceback.format_exception(error))
    summary = f"internal error: {type(error).__name__}: {_first_line(error)}"
    # Where nobody sits before it, as in a pod, the file would be lost with the container.
    if os.environ.get("TAILORPO_DEBUG") == "1" or not sys.stderr.isatty():
        message(details)
        message(f"{summary}\nThis is a bug of tailorpo. Please report it with the lines above.")
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


def _stdout_is_closed() -> bool:
    """Whether the broken pipe is standard output, and not another connection of this process."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        return False
    # Otherwise the interpreter would flush standard output at its end, and print an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
