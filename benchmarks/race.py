"""Compare processes fairly on a shared machine: they run alternately in short time slices, while the others are paused.

A shared machine may be half as fast in one minute as in the next, so processes that run one after the other cannot be
compared.
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

TIME_SLICE = 0.25
"""Seconds."""


class Track:
    """The connection of a contender's process to the process that measures it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ready(self, pids: Iterable[int]) -> None:
        """Wait for the start. pids: further processes of the contender, which are paused together with it."""
        self._pipe.send([os.getpid(), *pids])
        self._pipe.recv()

    def done(self, result: Any) -> None:
        """Report the result of the measurement, and wait for `go_on`."""
        self._pipe.send(result)
        self._pipe.recv()


class Contender:
    """A process that is paused, unless it is its turn, from `Track.ready` until the end of the `with` block.

    Attributes:
        seconds: total time in which it was not paused.
        result: the argument of `Track.done`.
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
        self._pipe.send(None)  # received when it runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._resume()
        if kind is None:
            self._pipe.send(None)  # from its last `done`
        else:
            self._signal(signal.SIGINT, self._pids[:1])  # it ends the processes that it has started
        self._process.join()

    def run(self, seconds: float) -> bool:
        """Run for so long; returns whether it is done. Raises `EOFError` if it has ended without a result."""
        begun = time.monotonic()
        self._resume()
        done = self._pipe.poll(seconds)
        self.seconds += time.monotonic() - begun
        if done:
            self.result = self._pipe.recv()
        self._pause()
        return done

    def go_on(self) -> Any:
        """Run without the others until the next `Track.done`; returns its argument."""
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
    """Run all until they are done: the lanes in turns, the contenders of each lane one after the other."""
    waiting = [deque(lane) for lane in lanes]
    while any(waiting):
        for lane in filter(None, waiting):
            if lane[0].run(TIME_SLICE):
                lane.popleft()


def _run(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in a shell's background ignore SIGINT
    work(Track(pipe), *arguments)
