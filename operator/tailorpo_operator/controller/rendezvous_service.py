"""The headless Service by which workers find the first of theirs.

One in each namespace for all its jobs of several workers: Kubernetes makes Endpoints and an EndpointSlice of each
Service, which costs as much as a job's pods. No job can own what others use, so what owner references do for other
children is done here: it comes with the first attempt that needs it, comes again where somebody deletes it, and goes
with the last job.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key
from tailorpo_operator.children.indexed_job import is_rendezvous, rendezvous
from tailorpo_operator.controller.worker import Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.cache import Cache, is_multi_worker
from tailorpo_operator.kube.child_store import remember, resource_version
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.transport import RefusedError

log = logging.getLogger(__name__)

Object = Mapping[str, Any]


class _Seen(NamedTuple):
    """A Service of that name, and the version that it was.

    serves: whether it does what ours does, whoever made it. ours: whether it is the operator's to delete.
    """

    version: int
    uid: str
    serves: bool
    ours: bool


class Rendezvous:
    """By namespace. `put`, `drop` and `keep` are told by a watch."""

    def __init__(self, cluster: KubeClient, cache: Cache, acts: Callable[[], bool]) -> None:
        self.queue: WorkQueue[str] = WorkQueue()
        self._cluster, self._cache = cluster, cache
        self._seen: dict[str, _Seen] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._making: dict[str, asyncio.Event] = {}
        self._worker = Worker(self.queue, self.reconcile, acts=acts, about=_about)

    async def work(self) -> None:
        """One worker; runs until it is cancelled."""
        await self._worker.run()

    async def ensure(self, namespace: str) -> None:
        """Raises `RefusedError`, as where the name is another's."""
        if self._serves(namespace):
            return
        if (making := self._making.get(namespace)) is not None:  # of a crowd one goes first
            await making.wait()
            if self._serves(namespace):
                return
        making = self._making.setdefault(namespace, asyncio.Event())
        try:
            made = await self._cluster.create_service(rendezvous(namespace))
            self.put(made)
        finally:
            making.set()
            self._making.pop(namespace, None)
        if not is_rendezvous(made):
            words = f"Service {naming.RENDEZVOUS} exists, and does not lead to the first workers of jobs: delete it"
            raise RefusedError(409, "NameTaken", words)
        log.info("Service %s is there", naming.RENDEZVOUS, extra=_about(namespace))

    async def reconcile(self, namespace: str) -> None:
        """One look at one namespace."""
        if self._needed(namespace):
            if not self._serves(namespace) and namespace in self._cache.rendezvous_namespaces:
                await self.ensure(namespace)
        elif (seen := self._seen.get(namespace)) is not None and seen.ours:
            await self._delete(namespace, seen.uid)

    async def _delete(self, namespace: str, uid: str) -> None:
        """Unless there is a job that no watch has shown yet. Whoever needs it meanwhile finds it, or makes it anew."""
        asked_for: list[bool] = []
        await self._cluster.list_jobs(namespace, lambda tree: asked_for.append(is_multi_worker(tree)))
        if any(asked_for) or self._needed(namespace):
            return
        await self._cluster.delete_service(namespace, naming.RENDEZVOUS, uid)
        self._bury(namespace, uid)
        self.queue.add(namespace)  # an attempt may have begun and relied on it
        log.info("Service %s is deleted after the last job", naming.RENDEZVOUS, extra=_about(namespace))

    def look_at_all(self) -> None:
        """Whatever was missed."""
        for namespace in self._seen.keys() | self._cache.rendezvous_namespaces:
            self.queue.add(namespace)

    def heard_of(self, key: Key) -> None:
        """Of a job or its children, which is often: looks at the namespace if that may matter."""
        there = self._serves(key.namespace)
        if not self._cache.has_multi_worker_jobs(key.namespace) if there else self._cache.needs_rendezvous(key):
            self.queue.add(key.namespace)

    # What a watch tells

    def put(self, tree: Object) -> Key:
        """A Service as it was seen or made, unless a newer one is known."""
        key, meta = _key(tree), tree["metadata"]
        known = self._seen.get(key.namespace)
        if meta["uid"] not in self._gone and (known is None or resource_version(tree) >= known.version):
            serves = "deletionTimestamp" not in meta and is_rendezvous(tree)
            ours = naming.COMMON.items() <= meta.get("labels", {}).items()
            self._seen[key.namespace] = _Seen(resource_version(tree), meta["uid"], serves, ours)
        return key

    def drop(self, tree: Object) -> Key:
        """One that was deleted."""
        key = _key(tree)
        self._bury(key.namespace, tree["metadata"]["uid"])
        return key

    def keep(self, uids: Set[str], listed: int, namespace: str | None) -> Iterable[Key]:
        """These are all there are (of a namespace), as of a list's version. Returns those that went."""
        among = ((where, seen) for where, seen in self._seen.items() if namespace in (None, where))
        gone = [(where, seen.uid) for where, seen in among if seen.uid not in uids and seen.version <= listed]
        for where, uid in gone:
            self._bury(where, uid)
        return [Key(where, naming.RENDEZVOUS) for where, _ in gone]

    def _bury(self, namespace: str, uid: str) -> None:
        """An answer or an event that comes late must not bring it back."""
        remember(self._gone, uid)
        if (seen := self._seen.get(namespace)) is not None and seen.uid == uid:
            del self._seen[namespace]

    def _needed(self, namespace: str) -> bool:
        return self._cache.has_multi_worker_jobs(namespace) or self._cache.has_multi_worker_attempts(namespace)

    def _serves(self, namespace: str) -> bool:
        seen = self._seen.get(namespace)
        return seen is not None and seen.serves


def _key(tree: Object) -> Key:
    return Key(tree["metadata"]["namespace"], tree["metadata"]["name"])


def _about(namespace: str) -> dict[str, Any]:
    return {"namespace": namespace}
