"""Keeps the cache equal to the API server's objects of a kind: a list, then watches from its version (ListAndWatch).

Not kopf's watch: after a break kopf lists too, but it never reports what was deleted meanwhile, and a pod that is
believed to live would hold back the next attempt for ever.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Set
from contextlib import aclosing
from typing import Any

from tailorpo_operator.api.naming import Key
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

log = logging.getLogger(__name__)

BACKOFF = 1.0
MAX_DOUBLINGS = 4
"""Of the backoff, while each watch is refused that starts from a new list."""
MAX_REFUSED_WATCHES = 2
"""After so many refused watches a list is no sign any more that the cache stays up to date."""
FORBIDDEN = 403
GONE = 410
"""The resource version to watch from is too old."""
BUSY = (429, 502, 503, 504)
"""The resource version stays valid: a new list of everything would make a busy server busier."""

Object = Mapping[str, Any]
List = Callable[[Callable[[Object], None]], Awaitable[int]]
Watch = Callable[[int], AsyncIterator[tuple[str, Object]]]


async def relist(
    list_: List,
    *,
    put: Callable[[Object], Key | None],
    drop_unlisted: Callable[[Set[str], int], Iterable[Key]],
    on_change: Callable[[Key], None],
) -> int:
    """Replaces the cache's objects by a list, one at a time, as there may be thousands. Returns the list's version.

    list_: calls its argument with each object, and returns the resource version of the list.
    drop_unlisted: drops every object that is not newer than that version and whose uid is not among these; returns the
    keys of the jobs that they belonged to.
    """
    uids = set[str]()

    def use(raw: Object) -> None:
        uids.add(raw["metadata"]["uid"])
        if (key := put(raw)) is not None:
            on_change(key)

    version = await list_(use)
    for key in drop_unlisted(uids, version):
        on_change(key)
    return version


class Reflector:
    """Of one kind of objects, in one namespace or in all.

    Attributes:
        synced: set once the cache has all objects of the first list.
    """

    def __init__(
        self,
        name: str,
        list_: List,
        watch: Watch,
        *,
        put: Callable[[Object], Key | None],
        drop: Callable[[Object], Key | None],
        drop_unlisted: Callable[[Set[str], int], Iterable[Key]],
        on_change: Callable[[Key], None],
        on_contact: Callable[[], None],
    ) -> None:
        """list_, drop_unlisted: see `relist`. on_contact: called at each sign that the cache is up to date."""
        self.name = name
        self.synced = asyncio.Event()
        self._logged: str | None = None
        self._resource_version: int | None = None
        self._refused_watches = 0
        self._list, self._watch = list_, watch
        self._put, self._drop, self._drop_unlisted = put, drop, drop_unlisted
        self._on_change, self._on_contact = on_change, on_contact

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                if self._resource_version is None:
                    self._resource_version = await relist(
                        self._list, put=self._put, drop_unlisted=self._drop_unlisted, on_change=self._on_change
                    )
                    self.synced.set()
                    if self._refused_watches < MAX_REFUSED_WATCHES:
                        self._on_contact()
                await self._watch_from(self._resource_version)
            except RefusedError as refusal:
                watched = self._resource_version is not None
                if refusal.status not in BUSY:
                    self._resource_version = None
                if refusal.status != GONE:
                    await self._back_off(refusal)
                    self._refused_watches += watched and self._resource_version is None
            except UnreachableError as error:  # the next watch starts from the last version, so nothing is missed
                await self._back_off(error)

    async def _watch_from(self, version: int) -> None:
        """One watch, until the server ends it."""
        async with aclosing(self._watch(version)) as events:  # type: ignore[type-var]
            async for kind, raw in events:
                if kind == "ERROR":
                    raise RefusedError(int(raw.get("code", 500)), str(raw.get("reason")), str(raw.get("message")))
                self._watch_succeeded()
                if kind != "BOOKMARK":
                    key = self._drop(raw) if kind == "DELETED" else self._put(raw)
                    if key is not None:
                        self._on_change(key)
                self._resource_version = int(raw["metadata"]["resourceVersion"])
        self._watch_succeeded()

    def _watch_succeeded(self) -> None:
        self._logged, self._refused_watches = None, 0
        self._on_contact()

    async def _back_off(self, problem: Exception) -> None:
        if str(problem) != self._logged:  # the same problem is logged once, however long it lasts
            lacks_rights = isinstance(problem, RefusedError) and problem.status == FORBIDDEN
            hint = ": see manifests/base/rbac.yaml" if lacks_rights else ""
            log.warning("watching %s: %s%s", self.name, problem, hint)
            self._logged = str(problem)
        doublings = min(self._refused_watches, MAX_DOUBLINGS)
        await asyncio.sleep(BACKOFF * 2**doublings * random.uniform(0.5, 1.5))
