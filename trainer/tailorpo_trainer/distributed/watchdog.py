"""Ends a process that hangs or whose launcher has ended, so that it does not occupy an accelerator for nothing."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tailorpo_trainer.errors import ExitCode

LAUNCHER = "TAILORPO_LAUNCHER"
"""Process id of the launcher, if one started this process."""

CHECK_SECONDS = 1.0

LOADING_SECONDS = 1800.0
"""Least limit before training begins: libraries, a model and a checkpoint may take long, above all when several
processes load them at once."""


class Beat:
    """Called at each sign of progress. limit: seconds that may pass without one; `begin` sets that of the training."""

    def __init__(self, seconds: float, loading: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock = seconds, clock
        self.limit = max(seconds, loading)
        self.last = clock()

    def __call__(self) -> None:
        self.last = self.clock()

    def begin(self) -> None:
        """The loading is over."""
        self()
        self.limit = self.seconds


@contextmanager
def watching(
    seconds: float,
    end: Callable[[int], None] = os._exit,
    clock: Callable[[], float] = time.monotonic,
    loading: float = 0.0,
) -> Iterator[Beat]:
    """Inside, `seconds` without a call of what is yielded end the process with exit code 74.

    Until its method `begin` is called, `loading` seconds are allowed, if those are more.

    The stack of every thread is written to standard error first. A thread of its own watches, since the one that hangs
    cannot. It does not notice code that never releases the interpreter's lock.
    """
    beat = Beat(seconds, loading, clock)
    over = threading.Event()
    launcher = os.environ.get(LAUNCHER)

    def watch() -> None:
        while not over.wait(min(CHECK_SECONDS, seconds / 4)):
            if launcher is not None and os.getppid() != int(launcher):
                end(ExitCode.INTERRUPTED)
                return
            if clock() - beat.last > (limit := beat.limit):
                rank = os.environ.get("RANK", "0")
                print(
                    f"error: rank {rank} made no progress for {limit:g} s (spec.runPolicy.stallTimeoutSeconds); "
                    "this is where its threads stand:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
                end(ExitCode.STALLED)
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        over.set()
        thread.join()
