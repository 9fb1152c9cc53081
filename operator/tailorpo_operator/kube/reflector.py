"""Keeps the store equal to what the API server has of gangs and pods: a list, then a watch from there on, and again.

Not kopf's watch: after a break it lists too, but never tells what was deleted meanwhile, and a pod that is thought to
live holds the next attempt back for ever.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Set
from contextlib import aclosing
from typing import Any

from tailorpo_operator.kube.cache import Key
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

log = logging.getLogger(__name__)

PAUSE = 1.0
LONGER = 4
"""Times that a pause is doubled, while one watch after the other is refused that a list had just been made for."""
UNWATCHED = 2
"""After so many of them lists are no sign any more that what is known is up to date."""
FORBIDDEN = 403
GONE = 410
"""The version to go on from is too old."""
BUSY = (429, 502, 503, 504)
"""It is still good: who lists everything instead makes a busy server busier."""

Object = Mapping[str, Any]
List = Callable[[Callable[[Object], None]], Awaitable[int]]
Watch = Callable[[int], AsyncIterator[tuple[str, Object]]]


async def relist(
    list_: List,
    *,
    put: Callable[[Object], Key | None],
    keep: Callable[[Set[str], int], Iterable[Key]],
    news: Callable[[Key], None],
) -> int:
    """Takes one object after the other: there may be thousands. Returns the version of the list.

    list_: calls what it is given with each object, and returns the list's version.
    keep: drops all but these uids, as far as they are not newer than that version, and returns whose they were.
    """
    uids = set[str]()

    def use(tree: Object) -> None:
        uids.add(tree["metadata"]["uid"])
        if (key := put(tree)) is not None:
            news(key)

    version = await list_(use)
    for key in keep(uids, version):
        news(key)
    return version


class Reflector:
    """Of one kind in one namespace, or in all.

    Attributes:
        listed: set once the store has all there is.
    """

    def __init__(
        self,
        name: str,
        list_: List,
        watch: Watch,
        *,
        put: Callable[[Object], Key | None],
        drop: Callable[[Object], Key | None],
        keep: Callable[[Set[str], int], Iterable[Key]],
        news: Callable[[Key], None],
        heard: Callable[[], None],
    ) -> None:
        """list_, keep: see `relist`. heard: called at each sign that what it knows is up to date."""
        self.name = name
        self.listed = asyncio.Event()
        self._said: str | None = None
        self._version: int | None = None
        self._unwatched = 0
        self._list, self._watch = list_, watch
        self._put, self._drop, self._keep, self._news, self._heard = put, drop, keep, news, heard

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                if self._version is None:
                    self._version = await relist(self._list, put=self._put, keep=self._keep, news=self._news)
                    self.listed.set()
                    if self._unwatched < UNWATCHED:
                        self._heard()
                await self._follow(self._version)
            except RefusedError as refusal:
                watched = self._version is not None
                if refusal.status not in BUSY:
                    self._version = None
                if refusal.status != GONE:
                    await self._pause(refusal)
                    self._unwatched += watched and self._version is None
            except UnreachableError as away:  # what was missed is asked for from the last version on
                await self._pause(away)

    async def _follow(self, version: int) -> None:
        """One watch."""
        async with aclosing(self._watch(version)) as events:  # type: ignore[type-var]
            async for kind, tree in events:
                if kind == "ERROR":
                    raise RefusedError(int(tree.get("code", 500)), str(tree.get("reason")), str(tree.get("message")))
                self._told()
                if kind != "BOOKMARK":
                    key = self._drop(tree) if kind == "DELETED" else self._put(tree)
                    if key is not None:
                        self._news(key)
                self._version = int(tree["metadata"]["resourceVersion"])
        self._told()

    def _told(self) -> None:
        """All is well again."""
        self._said, self._unwatched = None, 0
        self._heard()

    async def _pause(self, problem: Exception) -> None:
        if str(problem) != self._said:  # once, however long it lasts
            lacks = isinstance(problem, RefusedError) and problem.status == FORBIDDEN
            log.warning("watching %s: %s%s", self.name, problem, ": see manifests/rbac.yaml" if lacks else "")
            self._said = str(problem)
        await asyncio.sleep(PAUSE * 2 ** min(self._unwatched, LONGER) * random.uniform(0.5, 1.5))
