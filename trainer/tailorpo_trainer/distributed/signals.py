"""Stop on request: the first SIGTERM or Ctrl-C asks, a second Ctrl-C stops at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tailorpo_trainer.errors import StoppedError


class StopRequested(Exception):  # noqa: N818 (a wish, no error)
    """Raised between two denoiser calls, so that a long rollout does not eat the grace period."""


class Stop:
    """A request to stop, raised only where nothing half-done would be lost."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def check(self) -> None:
        """Raise `StopRequested` if someone asked to stop."""
        if self.requested:
            raise StopRequested

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take SIGINT and SIGTERM while inside; off the main thread, where Python allows no handler, only wait."""

        def take(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.requested:
                self.requested = signal.Signals(number).name
                _notice(f"{self.requested}: stopping after a checkpoint; Ctrl-C (again) stops at once")

        before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, take)
        except ValueError:
            pass
        try:
            yield self
        finally:
            for taken, handler in before.items():
                # None: installed by someone who is not Python, and cannot be put back from here.
                signal.signal(taken, signal.SIG_DFL if handler is None else handler)

    def error(self, where: str) -> StoppedError:
        """What the process ends with."""
        return StoppedError(f"stopped by {self.requested} {where}; the same command goes on from there")


def _notice(text: str) -> None:
    """Tell a person at a terminal. A handler may interrupt any write, so this goes round the streams' buffers."""
    try:
        if sys.stderr.isatty():
            # A live progress bar stands in this line; it draws itself again below.
            os.write(sys.stderr.fileno(), f"\r\x1b[2K{text}\r\n".encode())
    except (OSError, ValueError):  # the terminal is gone, or there is none
        pass
