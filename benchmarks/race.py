"""Contenders that share a machine fairly: for a moment one runs while the other is paused, then the other one.

A machine that others share, too, may be half as fast in one minute as in the next: of what runs one after the other
nobody can say which is faster.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

MOMENT = 0.25
"""Seconds."""


class Track:
    """What a contender says to who measures it, in its own process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ready(self, pids: Iterable[int]) -> None:
        """Waits for the start. pids: what runs for it besides, and is paused with it."""
        self._pipe.send([os.getpid(), *pids])
        self._pipe.recv()

    def done(self, result: Any) -> None:
        """What was measured has ended. Waits until it may go on, by itself."""
        self._pipe.send(result)
        self._pipe.recv()


class Contender:
    """A process that is paused whenever it is not its turn: from when it is ready until the end of the `with`.

    Attributes:
        seconds: for which it has run.
        result: what it gave to `Track.done`.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        """work: called with a `Track` and the arguments, in a new process."""
        self.seconds = 0.0
        self.result: Any = None
        self._pipe, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=_run, args=(theirs, work, arguments))
        self._process.start()
        theirs.close()
        self._pids: list[int] = self._pipe.recv()
        self._pause()
        self._pipe.send(None)  # read when it runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._resume()
        if kind is None:
            self._pipe.send(None)  # from its last `done`
        else:
            self._signal(signal.SIGINT, self._pids[:1])  # it takes what it has started with it
        self._process.join()

    def run(self, seconds: float) -> bool:
        """For so long; returns whether it is done. Raises `EOFError` if it has ended without a result."""
        begun = time.monotonic()
        self._resume()
        done = self._pipe.poll(seconds)
        self.seconds += time.monotonic() - begun
        if done:
            self.result = self._pipe.recv()
        self._pause()
        return done

    def go_on(self) -> Any:
        """Alone, to its next `done`. Returns what it gave to it."""
        self._resume()
        self._pipe.send(None)
        return self._pipe.recv()

    def _pause(self) -> None:
        self._signal(signal.SIGSTOP, self._pids)

    def _resume(self) -> None:
        self._signal(signal.SIGCONT, self._pids)

    @staticmethod
    def _signal(sign: signal.Signals, pids: Iterable[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)


def race(*lanes: Sequence[Contender]) -> None:
    """Until all are done: those of a lane one after the other, and a moment of each lane in turns."""
    waiting = [deque(lane) for lane in lanes]
    while any(waiting):
        for lane in filter(None, waiting):
            if lane[0].run(MOMENT):
                lane.popleft()


def _run(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    work(Track(pipe), *arguments)
