"""Keys that wait to be worked on: each once, however often it was added, and never by two workers at a time."""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

CALM, CALM_EACH, CALM_MOST = 0.5, 0.005, 5.0
"""Seconds in which nobody is put off, after which all come who were: at least, more for each of them, and at most. What
was made for a crowd keeps the API server busy for a while.
"""
PATIENCE = 20.0
"""Seconds after which one comes who was put off, however many still are."""


class WorkQueue(Generic[Key]):
    """After client-go's. A key that is added while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._patient: set[Key] = set()
        self._put_off: OrderedDict[Key, float] = OrderedDict()
        self._asked = float("-inf")
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._sooner = asyncio.Event()
        self._given_back = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    def add(self, key: Key) -> None:
        """As soon as a worker is free."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def put_off(self, key: Key) -> bool:
        """For who works on a key and could do the rest of it later: it comes again when there is no crowd any more.
        Returns False, and does nothing, if there is none: nobody waits, and nobody else asked for this just now.
        """
        now = asyncio.get_running_loop().time()
        crowd = now < self._calm() or not self._ready.empty()
        self._asked = now
        if crowd:
            self._patient.add(key)
        return crowd

    def add_after(self, key: Key, seconds: float) -> None:
        """After that time, unless a sooner one is set already."""
        due = asyncio.get_running_loop().time() + max(0.0, seconds)
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._count += 1
            heapq.heappush(self._heap, (due, self._count, key))
            self._clear_out()
            self._sooner.set()

    async def get(self) -> Key:
        """The next; give it back by `done`."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._working.add(key)
        self._due.pop(key, None)  # whoever works on it says anew when to look again
        return key

    async def idle(self) -> None:
        """Returns when nothing is being worked on."""
        while self._working:
            self._given_back.clear()
            await self._given_back.wait()

    def done(self, key: Key) -> None:
        self._working.discard(key)
        self._given_back.set()
        again, patient = key in self._again, key in self._patient
        self._again.discard(key)
        self._patient.discard(key)
        if patient:
            self._waiting.add(key)
            self._put_off[key] = asyncio.get_running_loop().time() + PATIENCE
            self._sooner.set()
        elif again:
            self.add(key)

    def _calm(self) -> float:
        """When the crowd will be over, unless somebody is put off before."""
        return self._asked + min(CALM + CALM_EACH * len(self._put_off), CALM_MOST)

    def _let_go(self, now: float) -> None:
        """Those who were put off, if it is time."""
        calm = now >= self._calm()
        while self._put_off and (calm or next(iter(self._put_off.values())) <= now):
            self._ready.put_nowait(self._put_off.popitem(last=False)[0])

    def _next(self) -> float | None:
        """When there is something to do."""
        times = [self._heap[0][0]] if self._heap else []
        if self._put_off:
            times.append(min(next(iter(self._put_off.values())), self._calm()))
        return min(times, default=None)

    def _clear_out(self) -> None:
        """Each look sets a time anew, which may be days off: what is no longer due must not pile up until then."""
        if len(self._heap) > 2 * len(self._due) + 100:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    async def keep_time(self) -> None:
        """Adds keys when they are due; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._sooner.clear()
            self._let_go(loop.time())
            due = self._next()
            wait = None if due is None else due - loop.time()
            if wait is None or wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # before Python 3.12 wait_for may miss a cancellation
                        await self._sooner.wait()
                continue
            if not self._heap or self._heap[0][0] != due:
                continue
            _, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else it was worked on meanwhile, or is due at another time
                del self._due[key]
                self.add(key)
