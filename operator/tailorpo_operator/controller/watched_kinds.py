"""The kinds that the operator lists and watches itself, besides TailorPOJobs, which kopf watches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tailorpo_operator.controller.health import Deadlines
from tailorpo_operator.controller.reconciler import Reconciler, now
from tailorpo_operator.controller.workqueue import Priority
from tailorpo_operator.kube.cache import Cache, Key, Object
from tailorpo_operator.kube.client import Cluster
from tailorpo_operator.kube.reflector import Reflector

JOBS, PODS, SERVICES = NAMES = ("Jobs", "pods", "Services")


@dataclass(frozen=True)
class WatchedKind:
    """One kind: the requests for its objects, and where the objects are kept.

    list_, watch: of a namespace, or of all namespaces. put, drop, keep: see `Reflector`. enqueue: called with the key
    of each object that has changed.
    """

    name: str
    list_: Callable[..., Any]
    watch: Callable[..., Any]
    put: Callable[[Object], Key | None]
    drop: Callable[[Object], Key | None]
    keep: Callable[..., Iterable[Key]]
    enqueue: Callable[[Key], None]

    def reflector(self, namespace: str | None, deadlines: Deadlines) -> Reflector:
        """Resets the deadline of the kind's name whenever its objects are known to be up to date."""
        return Reflector(
            self.name,
            partial(self.list_, namespace),
            partial(self.watch, namespace),
            put=self.put,
            drop=self.drop,
            keep=partial(self.keep, namespace=namespace),
            news=self.enqueue,
            heard=partial(deadlines.reset, self.name),
        )


def watched_kinds(cluster: Cluster, cache: Cache, reconciler: Reconciler) -> tuple[WatchedKind, ...]:
    """Attempt Jobs and their pods, kept in the cache; and Services, kept where they are created."""
    rendezvous = reconciler.rendezvous

    def child(key: Key) -> None:
        reconciler.queue.add(key, Priority.LOW if cache.waits(key) else Priority.HIGH)
        rendezvous.enqueue(key)

    return (
        WatchedKind(
            JOBS,
            list_=cluster.attempt_jobs,
            watch=cluster.watch_gangs,
            put=cache.put_gang,
            drop=cache.drop_gang,
            keep=cache.keep_gangs,
            enqueue=child,
        ),
        WatchedKind(
            PODS,
            list_=cluster.pods,
            watch=cluster.watch_pods,
            put=lambda raw: cache.put_pod(raw, now()),
            drop=cache.drop_pod,
            keep=cache.keep_pods,
            enqueue=child,
        ),
        WatchedKind(
            SERVICES,
            list_=cluster.services,
            watch=cluster.watch_services,
            put=rendezvous.put,
            drop=rendezvous.drop,
            keep=rendezvous.keep,
            enqueue=lambda key: rendezvous.queue.add(key.namespace),
        ),
    )
