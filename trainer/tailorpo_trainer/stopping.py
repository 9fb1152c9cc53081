"""Stop on request: the first SIGTERM or Ctrl-C asks, a second Ctrl-C stops at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tailorpo_trainer.exits import StoppedError


class StopRequested(Exception):
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
            self.requested = signal.Signals(number).name

        before: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, take)
        except ValueError:
            pass
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def error(self, where: str) -> StoppedError:
        """What the process ends with."""
        return StoppedError(f"stopped by {self.requested} {where}; the same command goes on from there")
