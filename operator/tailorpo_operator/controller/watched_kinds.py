"""The kinds that the operator lists and watches itself, besides TailorPOJobs, which kopf watches."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tailorpo_operator.api.naming import Key
from tailorpo_operator.controller.health import Deadlines
from tailorpo_operator.controller.reconciler import Reconciler, now
from tailorpo_operator.controller.workqueue import Priority
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.child_store import Object
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.reflector import Reflector

JOBS, PODS, SERVICES = NAMES = ("Jobs", "pods", "Services")


@dataclass(frozen=True)
class WatchedKind:
    """One kind: the requests for its objects, and where the objects are kept.

    list_, watch: of a namespace, or of all namespaces. put, drop, drop_unlisted: see `Reflector`. enqueue: called with
    the key of each object that has changed.
    """

    name: str
    list_: Callable[..., Any]
    watch: Callable[..., Any]
    put: Callable[[Object], Key | None]
    drop: Callable[[Object], Key | None]
    drop_unlisted: Callable[..., Iterable[Key]]
    enqueue: Callable[[Key], None]

    def reflector(self, namespace: str | None, deadlines: Deadlines) -> Reflector:
        """Resets the deadline of the kind's name whenever its objects are known to be up to date."""
        return Reflector(
            self.name,
            partial(self.list_, namespace),
            partial(self.watch, namespace),
            put=self.put,
            drop=self.drop,
            drop_unlisted=partial(self.drop_unlisted, namespace=namespace),
            on_change=self.enqueue,
            on_contact=partial(deadlines.reset, self.name),
        )


def watched_kinds(cluster: KubeClient, cache: Cache, reconciler: Reconciler) -> tuple[WatchedKind, ...]:
    """Attempt Jobs and their pods, kept in the cache; and Services, kept where they are created."""
    rendezvous = reconciler.rendezvous

    def child(key: Key) -> None:
        reconciler.queue.add(key, Priority.LOW if cache.awaits_pods(key) else Priority.HIGH)
        rendezvous.enqueue(key)

    return (
        WatchedKind(
            JOBS,
            list_=cluster.list_attempt_jobs,
            watch=cluster.watch_attempt_jobs,
            put=cache.put_attempt_job,
            drop=cache.drop_attempt_job,
            drop_unlisted=cache.drop_unlisted_attempt_jobs,
            enqueue=child,
        ),
        WatchedKind(
            PODS,
            list_=cluster.list_pods,
            watch=cluster.watch_pods,
            put=lambda raw: cache.put_pod(raw, now()),
            drop=cache.drop_pod,
            drop_unlisted=cache.drop_unlisted_pods,
            enqueue=child,
        ),
        WatchedKind(
            SERVICES,
            list_=cluster.list_services,
            watch=cluster.watch_services,
            put=rendezvous.put,
            drop=rendezvous.drop,
            drop_unlisted=rendezvous.drop_unlisted,
            enqueue=lambda key: rendezvous.queue.add(key.namespace),
        ),
    )
