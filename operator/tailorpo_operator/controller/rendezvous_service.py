"""The headless Service by which the workers of a job find its first worker.

There is one for each namespace, for all its jobs of several workers: Kubernetes creates Endpoints and an EndpointSlice
for each Service, which costs as much as a job's pods. No job can own an object that others use, so the operator does
here what owner references do for other children: it creates the Service with the first attempt that needs it, creates
it again if it is deleted, and deletes it after the last job.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Set
from typing import Any, NamedTuple

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key
from tailorpo_operator.children.indexed_job import is_rendezvous, rendezvous
from tailorpo_operator.controller.worker import Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.cache import Cache, is_multi_worker
from tailorpo_operator.kube.child_store import Object, remember, resource_version
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.transport import RefusedError

log = logging.getLogger(__name__)


class _Service(NamedTuple):
    """An observed Service of that name.

    serves: whether it does what ours does, even if somebody else created it. ours: whether the operator may delete it.
    """

    version: int
    uid: str
    serves: bool
    ours: bool


class Rendezvous:
    """Its keys are namespaces. A watch calls `put`, `drop` and `keep`."""

    def __init__(self, cluster: KubeClient, cache: Cache, may_act: Callable[[], bool]) -> None:
        self.queue: WorkQueue[str] = WorkQueue()
        self._cluster, self._cache = cluster, cache
        self._services: dict[str, _Service] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._creating: dict[str, asyncio.Event] = {}
        self._worker = Worker(self.queue, self.reconcile, may_act=may_act, log_fields=_log_fields)

    async def work(self) -> None:
        """One worker. Runs until it is cancelled."""
        await self._worker.run()

    async def ensure(self, namespace: str) -> None:
        """Creates the Service if there is none. Raises `RefusedError`, as where another Service has its name."""
        if self._serves(namespace):
            return
        if (creating := self._creating.get(namespace)) is not None:  # of many new jobs one sends the request
            await creating.wait()
            if self._serves(namespace):
                return
        creating = self._creating.setdefault(namespace, asyncio.Event())
        try:
            service = await self._cluster.create_service(rendezvous(namespace))
            self.put(service)
        finally:
            creating.set()
            self._creating.pop(namespace, None)
        if not is_rendezvous(service):
            message = f"Service {naming.RENDEZVOUS} exists, and does not lead to the first workers of jobs: delete it"
            raise RefusedError(409, "NameTaken", message)
        log.info("Service %s exists", naming.RENDEZVOUS, extra=_log_fields(namespace))

    async def reconcile(self, namespace: str) -> None:
        """Reconciles one namespace."""
        if self._needed(namespace):
            if not self._serves(namespace) and namespace in self._cache.rendezvous_namespaces:
                await self.ensure(namespace)
        elif (service := self._services.get(namespace)) is not None and service.ours:
            await self._delete(namespace, service.uid)

    async def _delete(self, namespace: str, uid: str) -> None:
        """Deletes the Service unless there is a job that no watch has shown yet.

        An attempt that begins at the same time either uses it before the deletion, or creates it again.
        """
        needed: list[bool] = []
        await self._cluster.list_jobs(namespace, lambda raw: needed.append(is_multi_worker(raw)))
        if any(needed) or self._needed(namespace):
            return
        await self._cluster.delete_service(namespace, naming.RENDEZVOUS, uid)
        self._forget(namespace, uid)
        self.queue.add(namespace)  # an attempt may have begun, and found the Service before it was deleted
        log.info("Service %s is deleted after the last job", naming.RENDEZVOUS, extra=_log_fields(namespace))

    def resync(self) -> None:
        """Adds all namespaces to the queue, because an event may have been missed."""
        for namespace in self._services.keys() | self._cache.rendezvous_namespaces:
            self.queue.add(namespace)

    def enqueue(self, key: Key) -> None:
        """After an event of a job or of its children, which are many: adds its namespace only if that may matter."""
        serves = self._serves(key.namespace)
        if not self._cache.has_multi_worker_jobs(key.namespace) if serves else self._cache.needs_rendezvous(key):
            self.queue.add(key.namespace)

    # Called by a watch

    def put(self, raw: Object) -> Key:
        """Takes a Service as it was observed or created, unless a newer version is known."""
        key, meta = _key(raw), raw["metadata"]
        known = self._services.get(key.namespace)
        if meta["uid"] not in self._deleted and (known is None or resource_version(raw) >= known.version):
            serves = "deletionTimestamp" not in meta and is_rendezvous(raw)
            ours = naming.COMMON.items() <= meta.get("labels", {}).items()
            self._services[key.namespace] = _Service(resource_version(raw), meta["uid"], serves, ours)
        return key

    def drop(self, raw: Object) -> Key:
        """Takes a Service that was deleted."""
        key = _key(raw)
        self._forget(key.namespace, raw["metadata"]["uid"])
        return key

    def drop_unlisted(self, uids: Set[str], listed: int, namespace: str | None) -> Iterable[Key]:
        """Takes the uids of a list: all Services (of a namespace), at the list's version. Returns those deleted."""
        among = ((where, service) for where, service in self._services.items() if namespace in (None, where))
        deleted = [
            (where, service.uid) for where, service in among if service.uid not in uids and service.version <= listed
        ]
        for where, uid in deleted:
            self._forget(where, uid)
        return [Key(where, naming.RENDEZVOUS) for where, _ in deleted]

    def _forget(self, namespace: str, uid: str) -> None:
        """Removes a deleted Service. Its uid is kept, so that a late response or event does not add it again."""
        remember(self._deleted, uid)
        if (service := self._services.get(namespace)) is not None and service.uid == uid:
            del self._services[namespace]

    def _needed(self, namespace: str) -> bool:
        return self._cache.has_multi_worker_jobs(namespace) or self._cache.has_multi_worker_attempts(namespace)

    def _serves(self, namespace: str) -> bool:
        service = self._services.get(namespace)
        return service is not None and service.serves


def _key(raw: Object) -> Key:
    return Key(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _log_fields(namespace: str) -> dict[str, Any]:
    return {"namespace": namespace}
