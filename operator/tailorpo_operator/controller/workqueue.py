"""Keys that wait for a worker: each once, however often it was added, and never held by two workers at a time.

After client-go's work queue and controller-runtime's priority queue: a key has a priority, and may have an earliest
time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from enum import IntEnum
from operator import itemgetter
from typing import Generic, TypeVar

from tailorpo_operator.kube.rate_limit import RateLimit

Key = TypeVar("Key", bound=Hashable)

BUSY_RATE = 10
"""New jobs a second, or events of deferred ones, that make the queue busy. A status that is written meanwhile delays
the pods of other jobs; fewer than that leave the API server time for it.
"""
QUIET_SECONDS = 3.0
"""Without a sign that the queue is busy, until deferred keys are ready: many jobs may arrive with short pauses."""
LATEST_SECONDS = 120.0
"""Until a key of low priority precedes all others: for so long a user may wait for the first status of a job, and in
that time 5,000 jobs arrive.
"""


class Priority(IntEnum):
    """LOW: a reconcile that only reports or checks. HIGH: any other, such as one that creates pods or judges an end."""

    LOW = 0
    HIGH = 1


class WorkQueue(Generic[Key]):
    """A key that is added while a worker has it is ready again afterwards. Call it in a running event loop."""

    def __init__(self) -> None:
        self._available = asyncio.Semaphore(0)  # its value: how many keys are ready
        # Of those of low priority also the time at which each precedes all others; the earliest is the first.
        self._high, self._low, self._deferred = (OrderedDict[Key, float]() for _ in range(3))
        self._working: set[Key] = set()
        self._again: dict[Key, Priority] = {}
        self._to_defer: set[Key] = set()
        self._due: dict[Key, asyncio.TimerHandle] = {}
        self._calm = RateLimit(BUSY_RATE, BUSY_RATE)
        self._quiet_at = 0.0
        self._release_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._high) + len(self._low) + len(self._deferred) + len(self._working)

    def add(self, key: Key, priority: Priority = Priority.HIGH) -> None:
        """A higher priority replaces a lower one. With a low priority a deferred key stays deferred."""
        if key in self._working:
            self._again[key] = max(priority, self._again.get(key, priority))
        elif key in self._high:
            return
        elif priority is Priority.HIGH:
            self._deferred.pop(key, None)
            if self._low.pop(key, None) is None:
                self._available.release()
            self._high[key] = 0.0
        elif key in self._deferred:
            self._count_arrival()
        elif key not in self._low:
            self._available.release()
            self._low[key] = _time() + LATEST_SECONDS

    def add_after(self, key: Key, seconds: float) -> None:
        """Adds the key after that time, unless an earlier one is set. A worker that takes the key resets it."""
        due, known = _time() + max(0.0, seconds), self._due.get(key)
        if known is None or due < known.when():
            self._cancel(key)
            self._due[key] = asyncio.get_running_loop().call_at(due, self._add_due, key)

    def defer(self, key: Key) -> bool:
        """For a worker that has the key, of a new job, and could do the rest of its work later.

        Returns whether the queue is busy: then the key is ready again, with a low priority, when it is quiet, or after
        `LATEST_SECONDS`. Otherwise nothing is changed.
        """
        if busy := self._count_arrival():
            self._to_defer.add(key)
        return busy

    async def get(self) -> Key:
        """The next key; `done` gives it back."""
        await self._available.acquire()
        overdue = bool(self._low) and _first(self._low) <= _time()
        key, _ = (self._high if self._high and not overdue else self._low).popitem(last=False)
        self._working.add(key)
        self._idle.clear()
        self._cancel(key)
        return key

    def done(self, key: Key) -> None:
        self._working.discard(key)
        if not self._working:
            self._idle.set()
        again, deferred = self._again.pop(key, None), key in self._to_defer
        self._to_defer.discard(key)
        if deferred and again is not Priority.HIGH:
            self._deferred[key] = _time() + LATEST_SECONDS
            if self._release_timer is None:
                self._release()
        elif again is not None:
            self.add(key, again)

    async def idle(self) -> None:
        """Returns when no worker has a key."""
        await self._idle.wait()

    def _count_arrival(self) -> bool:
        """Counts a sign that new jobs arrive, and returns whether there are too many, or were a moment ago."""
        if self._high or not self._calm.try_take():
            self._quiet_at = _time() + QUIET_SECONDS
        return _time() < self._quiet_at

    def _release(self) -> None:
        """Makes all deferred keys ready if the queue is quiet, and otherwise those that have waited for too long."""
        if _time() >= self._quiet_at:
            for _ in self._deferred:
                self._available.release()
            self._low = OrderedDict(sorted((self._low | self._deferred).items(), key=itemgetter(1)))
            self._deferred.clear()
        while self._deferred and _first(self._deferred) <= _time():
            self.add(next(iter(self._deferred)))
        if self._deferred:
            due = min(self._quiet_at, _first(self._deferred))
            self._release_timer = asyncio.get_running_loop().call_at(due, self._release)
        else:
            self._release_timer = None

    def _add_due(self, key: Key) -> None:
        del self._due[key]
        self.add(key)

    def _cancel(self, key: Key) -> None:
        if (timer := self._due.pop(key, None)) is not None:
            timer.cancel()


def _time() -> float:
    return asyncio.get_running_loop().time()


def _first(among: OrderedDict[Key, float]) -> float:
    return next(iter(among.values()))
