"""Keys that wait to be worked on: each once, however often it was added, and never by two workers at a time."""

import asyncio
import heapq
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

PATIENCE = 20.0
"""Seconds for which who was put off lets others go first."""


class WorkQueue(Generic[Key]):
    """After client-go's. A key that is added while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._ready: asyncio.PriorityQueue[tuple[float, int, Key]] = asyncio.PriorityQueue()
        self._waiting: set[Key] = set()
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._patient: set[Key] = set()
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
            self._put(key, 0.0)

    def put_off(self, key: Key) -> bool:
        """For who works on a key and could do the rest of it later: it comes again, after others that wait now or will
        soon. Returns False, and does nothing, if there are none.
        """
        if self._ready.empty():
            return False
        self._patient.add(key)
        return True

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
        _, _, key = await self._ready.get()
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
        if again or patient:
            self._waiting.add(key)
            self._put(key, PATIENCE if patient else 0.0)

    def _put(self, key: Key, patience: float) -> None:
        self._count += 1
        self._ready.put_nowait((asyncio.get_running_loop().time() + patience, self._count, key))

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
            wait = self._heap[0][0] - loop.time() if self._heap else None
            if wait is None or wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # before Python 3.12 wait_for may miss a cancellation
                        await self._sooner.wait()
                continue
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else it was worked on meanwhile, or is due at another time
                del self._due[key]
                self.add(key)
