"""The operator as a process: its loops, from start to a graceful stop."""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes.aio.client import ApiClient

from tailorpo_operator import metrics
from tailorpo_operator.api.naming import Key
from tailorpo_operator.controller import health, kopf_handlers
from tailorpo_operator.controller.progress_poller import ProgressPoller
from tailorpo_operator.controller.reconciler import Reconciler, now
from tailorpo_operator.kube import kubeconfig as kube_config
from tailorpo_operator.kube.cache import Cache, Object
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.leader_election import LeaderElection
from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.kube.reflector import Reflector, relist
from tailorpo_operator.kube.transport import TRIES, RefusedError, Transport, UnreachableError, writing_only_if
from tailorpo_operator.planning.observed import Pod
from tailorpo_operator.settings import Settings
from tailorpo_trainer.errors import UnavailableError

log = logging.getLogger(__name__)

CHILDREN = ("Jobs", "pods", "Services")
UNHEARD = 2.0
"""Of the time for a request, after which an operator that hears nothing of them is not ready: watches end sooner."""
TURN_SECONDS = 1.0
START_PAUSE, WATCH_PAUSE = 2.0, 2.0
ELECTION_RATE, ELECTION_BURST = 5.0, 10
"""Requests a second; each look at the Lease is two."""
NAMESPACE_WORKERS = 4
"""One namespace, as with a webhook that does not answer, must not keep others from their Service."""
STOP_SECONDS = 10.0
"""For the looks that are under way when a stop is asked for."""


class Operator:
    """All its loops, and what they share."""

    def __init__(self, settings: Settings, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self.settings, self._kubeconfig, self._context = settings, kubeconfig, context
        self._namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
        self._cache = Cache()
        self._stop, self._ready = asyncio.Event(), asyncio.Event()
        clock = asyncio.get_running_loop().time
        listing = TRIES * settings.request_timeout
        self._beats = health.Deadlines(clock, turn=settings.stale, list=2 * settings.resync + listing + settings.stale)
        self._word = health.Deadlines(clock, **dict.fromkeys(CHILDREN, UNHEARD * settings.request_timeout))
        self._election: LeaderElection | None = None
        self._said: dict[str, str] = {}

    async def run(self, host: str, port: int) -> None:
        """Until SIGTERM or SIGINT. Raises `ConfigurationError`, `UnavailableError`."""
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._stop.set)
        configuration = await kube_config.load(self._kubeconfig, self._context)
        configuration.trace_configs = [writing_only_if(self._leads)]
        async with (
            health.serving(host, port, self._beats.late, self._unready) as served,
            self._transport(configuration, self.settings.requests_per_second, self.settings.burst) as transport,
            self._electing(),
        ):
            log.info("serving /healthz, /readyz and /metrics on port %d", served)
            cluster = KubeClient(transport)
            reconciler = Reconciler(cluster, self._cache, self.settings, self._leads)
            loops = self._keep_turning(), self._defined(cluster), self._stop.wait()
            turning, defined, stop = (asyncio.create_task(each) for each in loops)
            try:
                await asyncio.wait([defined, stop], return_when=asyncio.FIRST_COMPLETED)
                if defined.done():
                    defined.result()
                    await self._work(cluster, reconciler)
            finally:
                for task in (turning, defined, stop):
                    task.cancel()
        log.info("stopped")

    @contextlib.asynccontextmanager
    async def _transport(self, configuration: Any, rate: float, burst: int) -> AsyncIterator[Transport]:
        renew = partial(kube_config.renew, configuration, self._kubeconfig, self._context)
        async with ApiClient(configuration) as client:
            yield Transport(client, RateLimit(rate, burst), renew, timeout=self.settings.request_timeout)

    @contextlib.asynccontextmanager
    async def _electing(self) -> AsyncIterator[None]:
        """By a connection and at a rate of its own: who waits behind other requests is deposed."""
        lease = self.settings.lease
        if lease is None:
            yield
            return
        own = await kube_config.load(self._kubeconfig, self._context)
        async with self._transport(own, ELECTION_RATE, ELECTION_BURST) as transport:
            self._election = LeaderElection(transport, lease.namespace, lease.name, _identity())
            yield

    async def _work(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        progresses = ProgressPoller(
            self._leaders,
            reconciler.reports,
            reconciler.queue.add,
            interval=self.settings.progress_interval,
            connections=self.settings.progress_connections,
        )
        metrics.JOBS.source = self._figures
        metrics.LEADING.set_function(self._leads)
        metrics.QUEUE.set_function(lambda: len(reconciler.queue))
        reflectors = list(self._reflectors(cluster, reconciler))
        loops = [
            *([self._election.run(partial(self._look_at_all, reconciler))] if self._election else []),
            *(reflector.run() for reflector in reflectors),
            self._watch(cluster, reconciler),
            reconciler.queue.keep_time(),
            reconciler.rendezvous.queue.keep_time(),
            self._keep_looking(cluster, reconciler),
            progresses.run(),
        ]
        others = [asyncio.create_task(loop) for loop in loops]
        stop = asyncio.create_task(self._stop.wait())
        for reflector in reflectors:  # nothing is decided before all children are known
            listed = asyncio.create_task(reflector.synced.wait())
            await asyncio.wait([stop, listed, *others], return_when=asyncio.FIRST_COMPLETED)
            listed.cancel()
        reconciler.rendezvous.look_at_all()
        working = [
            *(reconciler.rendezvous.work() for _ in range(NAMESPACE_WORKERS)),
            *(reconciler.work() for _ in range(self.settings.workers)),
        ]
        workers = [asyncio.create_task(each) for each in working]
        self._ready.set()
        done, _ = await asyncio.wait([stop, *workers, *others], return_when=asyncio.FIRST_COMPLETED)
        self._ready.clear()
        self._stop.set()
        log.info("stopping")
        await reconciler.stop(STOP_SECONDS)
        if self._election is not None:
            await self._election.release()
        for task in (*workers, *others, stop):
            task.cancel()
        await asyncio.gather(*workers, *others, stop, return_exceptions=True)
        for task in done - {stop}:
            task.result()

    async def _defined(self, cluster: KubeClient) -> None:
        """Waits until the API server serves TailorPOJobs."""
        said = None
        while True:
            self._beats.beat("list")
            try:
                await cluster.check_served(self._namespaces[0])
                return
            except RefusedError as refusal:
                words = "apply manifests/crd.yaml" if refusal.status == 404 else "see manifests/rbac.yaml"
                problem = f"cannot list TailorPOJobs: {refusal}: {words}"
                if refusal.status == 401:
                    raise UnavailableError(f"the API server does not know who we are: {refusal}") from None
            except UnreachableError as away:
                problem = str(away)
            if problem != said:
                log.warning("waiting: %s", problem)
                said = problem
            await asyncio.sleep(START_PAUSE)

    async def _watch(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        """Watches until it is cancelled, and begins anew where kopf gives up."""
        made = kopf_handlers.registry(
            self._cache, reconciler.queue.add, kube_config.login(self._kubeconfig, self._context)
        )
        while True:
            try:
                await kopf_handlers.watch(made, self.settings.namespaces, self.settings.request_timeout)
            except Exception as error:
                words = next(iter(str(error).splitlines()), "")
                self._complain("watching TailorPOJobs", f"{type(error).__name__}: {words}: begins anew")
            await asyncio.sleep(WATCH_PAUSE)
            await self._resync(cluster, reconciler)

    async def _keep_looking(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        while True:
            await asyncio.sleep(self.settings.resync)
            await self._resync(cluster, reconciler)

    async def _resync(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        """Lists all jobs, and looks at each. What cannot be listed now is left for the next time."""
        for namespace in self._namespaces:
            self._beats.beat("list")  # one after the other may take long where nobody answers
            try:
                await relist(
                    partial(cluster.list_jobs, namespace),
                    put=self._cache.put_job,
                    drop_unlisted=partial(self._cache.drop_unlisted_jobs, namespace=namespace),
                    on_change=lambda key: reconciler.queue.add(key, can_wait=key in self._cache.jobs),
                )
            except (UnreachableError, RefusedError) as problem:
                self._complain("cannot list TailorPOJobs", str(problem))
                continue
            self._said.clear()
        self._beats.beat("list")
        reconciler.rendezvous.look_at_all()

    def _complain(self, what: str, words: str) -> None:
        if self._said.get(what) != words:  # once, however long it lasts
            log.warning("%s: %s", what, words)
            self._said[what] = words

    def _reflectors(self, cluster: KubeClient, reconciler: Reconciler) -> Iterator[Reflector]:
        cache, rendezvous, child = self._cache, reconciler.rendezvous, partial(self._child_told, reconciler)

        def put_pod(tree: Object) -> Key | None:
            return cache.put_pod(tree, now())

        def service(key: Key) -> None:
            rendezvous.queue.add(key.namespace)

        jobs, pods, services = CHILDREN
        kinds = (
            (
                jobs,
                cluster.list_attempt_jobs,
                cluster.watch_attempt_jobs,
                cache.put_attempt_job,
                cache.drop_attempt_job,
                cache.drop_unlisted_attempt_jobs,
                child,
            ),
            (pods, cluster.list_pods, cluster.watch_pods, put_pod, cache.drop_pod, cache.drop_unlisted_pods, child),
            (
                services,
                cluster.list_services,
                cluster.watch_services,
                rendezvous.put,
                rendezvous.drop,
                rendezvous.keep,
                service,
            ),
        )
        for namespace in self._namespaces:
            for name, list_, watch, put, drop, keep, news in kinds:
                yield Reflector(
                    name,
                    partial(list_, namespace),
                    partial(watch, namespace),
                    put=put,
                    drop=drop,
                    drop_unlisted=partial(keep, namespace=namespace),
                    on_change=news,
                    on_contact=partial(self._word.beat, name),
                )

    def _child_told(self, reconciler: Reconciler, key: Key) -> None:
        reconciler.queue.add(key, can_wait=self._cache.awaits_pods(key))
        reconciler.rendezvous.heard_of(key)

    async def _keep_turning(self) -> None:
        """The sign that the loop of all loops turns, whatever they wait for."""
        while True:
            self._beats.beat("turn")
            await asyncio.sleep(TURN_SECONDS)

    def _figures(self) -> Iterator[metrics.JobSample]:
        """Of all jobs, if we act: else each would count for each operator."""
        for key, known in self._cache.jobs.items() if self._leads() else ():
            pending = None if known.unready_since is None else max(0.0, (now() - known.unready_since).total_seconds())
            yield metrics.JobSample(*key, known.phase, pending)

    def _leaders(self) -> dict[Key, Pod]:
        """The first worker of each running job."""
        running = self._cache.running if self._leads() else ()
        return {key: pod for key in running if (pod := self._cache.rank_zero_pod(key)) is not None}

    def _leads(self) -> bool:
        return self._election is None or self._election.is_leader

    def _look_at_all(self, reconciler: Reconciler) -> None:
        for key in self._cache.jobs:
            reconciler.queue.add(key)
        reconciler.rendezvous.look_at_all()

    def _unready(self) -> str | None:
        return self._word.late() if self._ready.is_set() else "not started"


def _identity() -> str:
    """Of this process and no other."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"
