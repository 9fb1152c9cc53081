"""The headless Service by which workers find the first of theirs.

One in each namespace for all its jobs of several workers: Kubernetes makes Endpoints and an EndpointSlice of each
Service, which costs as much as a job's pods. No job can own what others use, so what owner references do for other
children is done here: it comes with the first attempt that needs it, comes again where somebody deletes it, and goes
with the last job.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from tailorpo_operator import children, naming
from tailorpo_operator.cluster import Cluster
from tailorpo_operator.store import Key, Store, several, version
from tailorpo_operator.wire import RefusedError
from tailorpo_operator.worker import Worker
from tailorpo_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

Tree = Mapping[str, Any]


class _Seen(NamedTuple):
    """A Service of that name, and the version that it was. ours: whether it does what ours does."""

    version: int
    uid: str
    ours: bool


class Rendezvous:
    """By namespace. `put`, `drop` and `keep` are told by a watch."""

    def __init__(self, cluster: Cluster, store: Store, acts: Callable[[], bool]) -> None:
        self.queue: WorkQueue[str] = WorkQueue()
        self._cluster, self._store = cluster, store
        self._seen: dict[str, _Seen] = {}
        self._gone: dict[str, str] = {}
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._worker = Worker(self.queue, self.reconcile, acts=acts, about=_about)

    async def work(self) -> None:
        """Runs until it is cancelled."""
        await self._worker.run()

    async def ensure(self, namespace: str) -> None:
        """Raises `RefusedError`, as where the name is another's."""
        if self._ours(namespace) is not None:
            return
        async with self._writing[namespace]:
            if self._ours(namespace) is not None:
                return
            made = await self._cluster.create_service(children.rendezvous(namespace))
            self.put(made)
        if not children.is_rendezvous(made):
            words = f"Service {naming.RENDEZVOUS} exists, and does not lead to the first workers of jobs: delete it"
            raise RefusedError(409, "NameTaken", words)
        log.info("Service %s is there", naming.RENDEZVOUS, extra=_about(namespace))

    async def reconcile(self, namespace: str) -> None:
        """One look at one namespace."""
        if self._ours(namespace) is not None:
            if not self._store.gathers(namespace):
                await self._delete(namespace)
        elif namespace in self._store.gathering():
            await self.ensure(namespace)

    async def _delete(self, namespace: str) -> None:
        """Unless the API server knows of a job that needs it: a watch may lag."""
        async with self._writing[namespace]:
            asked_for: list[bool] = []
            await self._cluster.jobs(namespace, lambda tree: asked_for.append(several(tree)))
            seen = self._ours(namespace)
            if seen is not None and not any(asked_for):
                del self._seen[namespace]  # first, or an attempt that begins now would rely on it
                try:
                    await self._cluster.delete_service(namespace, naming.RENDEZVOUS, seen.uid)
                except BaseException:
                    self._seen.setdefault(namespace, seen)  # no watch will tell of it
                    raise
                log.info("Service %s deleted after the last job", naming.RENDEZVOUS, extra=_about(namespace))

    def look_at_all(self) -> None:
        """Whatever was missed."""
        for namespace in self._seen.keys() | self._store.gathering():
            self.queue.add(namespace)

    # What a watch tells

    def put(self, tree: Tree) -> Key:
        """A Service as it was seen or made, unless a newer one is known."""
        key, meta = _key(tree), tree["metadata"]
        known = self._seen.get(key.namespace)
        newer = known is None or version(tree) >= known.version
        if newer and meta["uid"] != self._gone.get(key.namespace):  # as an answer that comes late
            ours = "deletionTimestamp" not in meta and children.is_rendezvous(tree)
            self._seen[key.namespace] = _Seen(version(tree), meta["uid"], ours)
        return key

    def drop(self, tree: Tree) -> Key:
        """One that was deleted."""
        key = _key(tree)
        self._gone[key.namespace] = tree["metadata"]["uid"]
        if (known := self._seen.get(key.namespace)) is not None and known.uid == tree["metadata"]["uid"]:
            del self._seen[key.namespace]
        return key

    def keep(self, uids: Set[str], listed: int, namespace: str | None) -> Iterable[Key]:
        """These are all there are (of a namespace), as of a list's version. Returns those that went."""
        among = ((where, seen) for where, seen in self._seen.items() if namespace in (None, where))
        gone = [where for where, seen in among if seen.uid not in uids and seen.version <= listed]
        for where in gone:
            del self._seen[where]
        return [Key(where, naming.RENDEZVOUS) for where in gone]

    def _ours(self, namespace: str) -> _Seen | None:
        seen = self._seen.get(namespace)
        return seen if seen is not None and seen.ours else None


def _key(tree: Tree) -> Key:
    return Key(tree["metadata"]["namespace"], tree["metadata"]["name"])


def _about(namespace: str) -> dict[str, Any]:
    return {"namespace": namespace}
