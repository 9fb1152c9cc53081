"""Stop on request: the first SIGTERM or Ctrl-C requests it, a second Ctrl-C stops at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tailorpo_trainer.errors import InterruptedEarlyError, StoppedError


class StopRequested(BaseException):
    """Raised between two denoiser calls, or in the middle of a reward, so that the grace period is not used up.

    Like KeyboardInterrupt it is no `Exception`: a reward that tries again after any error must not swallow it.
    """


class Stop:
    """A request to stop, raised only where no work that is half done would be lost."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self.taken_over = False
        self._at_once = False

    def check(self) -> None:
        """Raise `StopRequested` if a signal asked to stop."""
        if self.requested:
            raise StopRequested

    def take_over(self, successor: str) -> None:
        """Request a stop because another process owns this run's storage or folder; callable from any thread.

        successor: a noun, such as `attempt 2`.
        """
        self.taken_over = True
        self.requested = self.requested or f"{successor}, which has taken over,"

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a request raises `StopRequested` wherever the program is, also in a wait for a server.

        For code whose results are dropped by a stop: it may be interrupted between any two instructions.
        """
        before, self._at_once = self._at_once, True
        try:
            self.check()  # for a signal that came just before
            yield
        finally:
            self._at_once = before

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Handle SIGINT and SIGTERM, and ignore SIGHUP: a lost terminal is no reason to stop.

        Does nothing off the main thread, where Python allows no handler.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.requested:
                self.requested = signal.Signals(number).name
                _notice(f"{self.requested}: stopping after a checkpoint; Ctrl-C (again) stops at once")
                if self._at_once:
                    raise StopRequested

        previous: dict[int, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, handle)
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        except ValueError:
            pass
        try:
            yield self
        finally:
            for replaced, handler in previous.items():
                # None: the handler was not installed by Python, and cannot be restored from here.
                signal.signal(replaced, signal.SIG_DFL if handler is None else handler)

    def error(self, done: int | None, total: int) -> StoppedError:
        """The error that the process ends with, after so many iterations; None: it was still loading."""
        if self.taken_over:
            when = "while it was loading" if done is None else f"after iteration {done} of {total}"
            return StoppedError(f"stopped by {self.requested} {when}: nothing more was saved here")
        if done:
            return StoppedError(
                f"stopped by {self.requested} after iteration {done} of {total}; the same command goes on from there"
            )
        when = "while it was loading" if done is None else f"before the first iteration of {total} was done"
        text = f"stopped by {self.requested} {when}: there was nothing to save, the same command starts again"
        return InterruptedEarlyError(text) if self.requested == signal.SIGINT.name else StoppedError(text)


def _notice(text: str) -> None:
    """Show a text on a terminal. A signal handler may interrupt any write, so this bypasses the streams' buffers."""
    try:
        if sys.stderr.isatty():
            # A live progress bar is in this line; it is drawn again below.
            os.write(sys.stderr.fileno(), f"\r\x1b[2K{text}\r\n".encode())
    except (OSError, ValueError):  # the terminal is closed, or there is none
        pass
