"""Keys that wait to be worked on: each once, however often it was added, and never by two workers at a time."""

import asyncio
import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

CALM, CALM_EACH, CALM_MOST = 1.0, 0.005, 3.0
"""Seconds in which nothing stirs, after which all come who were put off: at least, more for each, and at most."""
MANY, BUSY = 10, 30
"""So many new ones a second are a crowd, though nobody waits; and so much news of those put off prolongs one: what was
made for it keeps the API server busy for a while.
"""
PATIENCE, DRIP, DRAINED = 60.0, 0.5, 600.0
"""Seconds after which one comes who was put off even if the crowd stays; between two of them at most; and in which all
would have come: a crowd that stays for ever is told of late, not later and later.
"""


class WorkQueue(Generic[Key]):
    """After client-go's. A key that is added while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._available = asyncio.Semaphore(0)
        self._first: OrderedDict[Key, None] = OrderedDict()
        self._last: OrderedDict[Key, None] = OrderedDict()
        self._put_off: OrderedDict[Key, float] = OrderedDict()
        self._working: set[Key] = set()
        self._again: dict[Key, bool] = {}
        self._patient: set[Key] = set()
        self._asked, self._told = deque[float](maxlen=MANY), deque[float](maxlen=BUSY)
        self._crowded = self._dripped = float("-inf")
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._sooner = asyncio.Event()
        self._given_back = asyncio.Event()

    def __len__(self) -> int:
        return len(self._first) + len(self._last) + len(self._put_off) + len(self._working)

    def add(self, key: Key, *, can_wait: bool = False) -> None:
        """As soon as a worker is free. can_wait: one that was put off stays so."""
        if key in self._working:
            self._again[key] = self._again.get(key, False) or not can_wait
        elif can_wait and key in self._put_off:
            self._stir(self._told)
        elif can_wait and key in self._last:
            pass
        elif key in self._last:
            del self._last[key]
            self._first[key] = None
        elif key not in self._first:
            self._put_off.pop(key, None)
            self._let_come(self._first, key)

    def put_off(self, key: Key) -> bool:
        """For who works on a key and could do the rest of it later: it comes again when there is no crowd any more, and
        nobody else. Returns False, and does nothing, if there is none.
        """
        now = self._stir(self._asked)
        if self._first:
            self._crowded = now
        crowd = now < self._calm()
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
        await self._available.acquire()
        key, _ = (self._first or self._last).popitem(last=False)
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
        again, patient = self._again.pop(key, None), key in self._patient
        self._patient.discard(key)
        if patient and not again:
            self._put_off[key] = asyncio.get_running_loop().time() + PATIENCE
            self._sooner.set()
        elif again is not None:
            self.add(key)

    def _stir(self, signs: deque[float]) -> float:
        """One more sign of a crowd. Returns the time."""
        now = asyncio.get_running_loop().time()
        signs.append(now)
        if len(signs) == signs.maxlen and now - signs[0] < 1.0:
            self._crowded = now
        return now

    def _let_come(self, among: OrderedDict[Key, None], key: Key) -> None:
        among[key] = None
        self._available.release()

    def _calm(self) -> float:
        """When the crowd will be over, unless more come."""
        return self._crowded + min(CALM + CALM_EACH * len(self._put_off), CALM_MOST)

    def _drip(self) -> float:
        """When the next of those who were put off comes even so."""
        pause = min(DRIP, DRAINED / len(self._put_off))
        return max(next(iter(self._put_off.values())), self._dripped + pause)

    def _let_go(self, now: float) -> None:
        """Those who were put off, if it is time."""
        if now >= self._calm():
            while self._put_off:
                self._let_come(self._last, self._put_off.popitem(last=False)[0])
        elif self._put_off and now >= self._drip():
            self._dripped = now
            self._let_come(self._first, self._put_off.popitem(last=False)[0])

    def _next(self) -> float | None:
        """When there is something to do."""
        times = [self._heap[0][0]] if self._heap else []
        if self._put_off:
            times.append(min(self._drip(), self._calm()))
        return min(times, default=None)

    def _clear_out(self) -> None:
        """Each look sets a time anew, which may be days off: what is no longer due must not pile up until then."""
        if len(self._heap) > 2 * len(self._due) + 100:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def _take_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else it was worked on meanwhile, or is due at another time
                del self._due[key]
                self.add(key)

    async def keep_time(self) -> None:
        """Adds keys when they are due; runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._sooner.clear()
            self._let_go(loop.time())
            self._take_due(loop.time())
            due = self._next()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):  # before Python 3.12 wait_for may miss a cancellation
                    await self._sooner.wait()
