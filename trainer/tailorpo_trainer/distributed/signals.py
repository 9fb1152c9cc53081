"""Stop on request: the first SIGTERM or Ctrl-C requests it, a second Ctrl-C stops at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tailorpo_trainer.errors import StoppedError


class StopRequested(Exception):  # noqa: N818 (a request, not an error)
    """Raised between two denoiser calls, so that a long rollout does not use up the grace period."""


class Stop:
    """A request to stop, raised only where no work that is half done would be lost."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def check(self) -> None:
        """Raise `StopRequested` if a signal asked to stop."""
        if self.requested:
            raise StopRequested

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Handle SIGINT and SIGTERM while inside. Does nothing off the main thread, where Python allows no handler."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.requested:
                self.requested = signal.Signals(number).name
                _notice(f"{self.requested}: stopping after a checkpoint; Ctrl-C (again) stops at once")

        previous: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, handle)
        except ValueError:
            pass
        try:
            yield self
        finally:
            for replaced, handler in previous.items():
                # None: the handler was not installed by Python, and cannot be restored from here.
                signal.signal(replaced, signal.SIG_DFL if handler is None else handler)

    def error(self, where: str) -> StoppedError:
        """The error that the process ends with."""
        return StoppedError(f"stopped by {self.requested} {where}; the same command goes on from there")


def _notice(text: str) -> None:
    """Show a text on a terminal. A signal handler may interrupt any write, so this bypasses the streams' buffers."""
    try:
        if sys.stderr.isatty():
            # A live progress bar is in this line; it is drawn again below.
            os.write(sys.stderr.fileno(), f"\r\x1b[2K{text}\r\n".encode())
    except (OSError, ValueError):  # the terminal is closed, or there is none
        pass
