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


@contextmanager
def watching(
    seconds: float, end: Callable[[int], None] = os._exit, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Inside, `seconds` without a call of the yielded function end the process with exit code 74.

    The stack of every thread is written to standard error first. A thread of its own watches, since the one that hangs
    cannot. It does not notice code that never releases the interpreter's lock.
    """
    last_beat = clock()
    over = threading.Event()
    launcher = os.environ.get(LAUNCHER)

    def beat() -> None:
        nonlocal last_beat
        last_beat = clock()

    def watch() -> None:
        while not over.wait(min(CHECK_SECONDS, seconds / 4)):
            if launcher is not None and os.getppid() != int(launcher):
                end(ExitCode.INTERRUPTED)
                return
            if clock() - last_beat > seconds:
                rank = os.environ.get("RANK", "0")
                print(
                    f"error: rank {rank} made no progress for {seconds:g} s (spec.runPolicy.stallTimeoutSeconds); "
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
