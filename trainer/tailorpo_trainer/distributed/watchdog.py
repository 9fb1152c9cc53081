"""A process that hangs, or whose launcher is gone, ends: it must not hold an accelerator for nothing."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tailorpo_trainer.errors import ExitCode

LAUNCHER = "TAILORPO_LAUNCHER"
"""Process id of the launcher that started this process, where one did."""

LOOK_SECONDS = 1.0


@contextmanager
def watching(
    seconds: float, end: Callable[[int], None] = os._exit, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Inside, `seconds` without a call of the yielded function end the process with exit code 74.

    Where every thread stands is written to standard error first. A thread watches, since the one that hangs cannot;
    code that holds the interpreter's lock for ever is the one thing it cannot see.
    """
    last = clock()
    over = threading.Event()
    launcher = os.environ.get(LAUNCHER)

    def beat() -> None:
        nonlocal last
        last = clock()

    def watch() -> None:
        while not over.wait(min(LOOK_SECONDS, seconds / 4)):
            if launcher is not None and os.getppid() != int(launcher):
                end(ExitCode.INTERRUPTED)
                return
            if clock() - last > seconds:
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
