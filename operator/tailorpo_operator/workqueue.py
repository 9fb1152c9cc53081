"""Keys that wait to be worked on: each once, however often it was added, and never by two workers at a time."""

import asyncio
import heapq
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """After client-go's. A key that is added while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._working: set[Key] = set()
        self._again: set[Key] = set()
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
        if key in self._again:
            self._again.discard(key)
            self.add(key)

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
                    await asyncio.wait_for(self._sooner.wait(), wait)
                continue
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else it was worked on meanwhile, or is due at another time
                del self._due[key]
                self.add(key)
