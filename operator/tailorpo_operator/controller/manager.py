"""The operator as a process: its tasks, from the start to a graceful stop."""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes.aio.client import ApiClient

from tailorpo_operator import metrics
from tailorpo_operator.api.naming import Key
from tailorpo_operator.controller import health, job_metrics, kopf_handlers
from tailorpo_operator.controller.progress_poller import ProgressPoller
from tailorpo_operator.controller.reconciler import Reconciler, now
from tailorpo_operator.controller.watched_kinds import NAMES, watched_kinds
from tailorpo_operator.controller.workqueue import Priority
from tailorpo_operator.kube import kubeconfig as kube_config
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.leader_election import LeaderElection
from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.kube.reflector import relist
from tailorpo_operator.kube.transport import TRIES, RefusedError, Transport, UnreachableError, writing_only_if
from tailorpo_operator.planning.observed import Pod
from tailorpo_operator.settings import Settings
from tailorpo_trainer.errors import UnavailableError

log = logging.getLogger(__name__)

UNREADY_AFTER = 2.0
"""Request timeouts without any response to a watch, after which the operator is not ready. Watches end before that."""
TURN_SECONDS = 1.0
START_PAUSE, WATCH_PAUSE = 2.0, 2.0
ELECTION_RATE, ELECTION_BURST = 5.0, 10
"""Requests a second; each renewal of the Lease takes two."""
NAMESPACE_WORKERS = 4
"""A namespace whose webhook does not answer must not keep other namespaces from their Service."""
STOP_SECONDS = 10.0
"""For reconciles that are in progress when the operator is stopped."""


class _StoppedError(Exception):
    """Ends a task group, which has no other way to cancel all its tasks."""


class Operator:
    """All tasks of the process, and what they share."""

    def __init__(self, settings: Settings, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self.settings, self._kubeconfig, self._context = settings, kubeconfig, context
        self._namespaces: tuple[str | None, ...] = settings.namespaces or (None,)
        self._cache = Cache()
        self._stop, self._ready = asyncio.Event(), asyncio.Event()
        clock = asyncio.get_running_loop().time
        listing = TRIES * settings.request_timeout
        self._live = health.Deadlines(clock, turn=settings.stale, list=2 * settings.resync + listing + settings.stale)
        self._watching = health.Deadlines(clock, **dict.fromkeys(NAMES, UNREADY_AFTER * settings.request_timeout))
        self._election: LeaderElection | None = None
        self._logged: dict[str, str] = {}

    async def run(self, host: str, port: int) -> None:
        """Runs until SIGTERM or SIGINT. Raises `ConfigurationError`, `UnavailableError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        configuration = await kube_config.load(self._kubeconfig, self._context)
        configuration.trace_configs = [writing_only_if(self._leads)]
        async with (
            health.serving(host, port, self._live.overdue, self._unready) as served,
            self._transport(configuration, self.settings.requests_per_second, self.settings.burst) as transport,
            self._electing(),
        ):
            log.info("serving /healthz, /readyz and /metrics on port %d", served)
            cluster = KubeClient(transport)
            reconciler = Reconciler(cluster, self._cache, self.settings, self._leads)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._turn())
                    group.create_task(self._start(group, cluster, reconciler))
                    await self._stop.wait()
                    self._ready.clear()
                    log.info("stopping")
                    await reconciler.stop(STOP_SECONDS)
                    raise _StoppedError
            except ExceptionGroup as ended:
                if (failed := ended.split(_StoppedError)[1]) is not None:
                    raise failed.exceptions[0] from None
            finally:
                if self._election is not None:
                    await self._election.release()
        log.info("stopped")

    @contextlib.asynccontextmanager
    async def _transport(self, configuration: Any, rate: float, burst: int) -> AsyncIterator[Transport]:
        renew = partial(kube_config.renew, configuration, self._kubeconfig, self._context)
        async with ApiClient(configuration) as client:
            yield Transport(client, RateLimit(rate, burst), renew, timeout=self.settings.request_timeout)

    @contextlib.asynccontextmanager
    async def _electing(self) -> AsyncIterator[None]:
        """With a connection and a rate limit of its own: a renewal that waits for other requests may come too late."""
        lease = self.settings.lease
        if lease is None:
            yield
            return
        own = await kube_config.load(self._kubeconfig, self._context)
        async with self._transport(own, ELECTION_RATE, ELECTION_BURST) as transport:
            self._election = LeaderElection(transport, lease.namespace, lease.name, _identity())
            yield

    async def _start(self, group: asyncio.TaskGroup, cluster: KubeClient, reconciler: Reconciler) -> None:
        """Starts all other tasks; the workers last, because all children have to be known before any decision."""
        await self._wait_for_definition(cluster)
        metrics.JOBS.source = self._figures
        metrics.LEADING.set_function(self._leads)
        metrics.READY.set_function(lambda: self._unready() is None)
        for name in NAMES:
            metrics.WATCH_AGE.labels(name).set_function(partial(self._watching.age, name))
        metrics.QUEUE.set_function(lambda: len(reconciler.queue))
        poller = ProgressPoller(
            self._leaders,
            reconciler.reports,
            reconciler.queue.add,
            interval=self.settings.progress_interval,
            connections=self.settings.progress_connections,
        )
        kinds = watched_kinds(cluster, self._cache, reconciler)
        reflectors = [kind.reflector(each, self._watching) for each in self._namespaces for kind in kinds]
        if self._election is not None:
            group.create_task(self._election.run(partial(self._elected, reconciler)))
        for reflector in reflectors:
            group.create_task(reflector.run())
        group.create_task(self._watch_jobs(cluster, reconciler))
        group.create_task(self._keep_resyncing(cluster, reconciler))
        group.create_task(poller.run())
        for reflector in reflectors:
            await reflector.synced.wait()
        reconciler.rendezvous.resync()
        for _ in range(NAMESPACE_WORKERS):
            group.create_task(reconciler.rendezvous.work())
        for _ in range(self.settings.workers):
            group.create_task(reconciler.work())
        self._ready.set()

    async def _wait_for_definition(self, cluster: KubeClient) -> None:
        """Waits until the API server serves TailorPOJobs."""
        while True:
            self._live.reset("list")
            try:
                await cluster.check_served(self._namespaces[0])
                return
            except RefusedError as refusal:
                advice = "apply manifests/crd.yaml" if refusal.status == 404 else "see manifests/base/rbac.yaml"
                if refusal.status == 401:
                    raise UnavailableError(f"the API server does not know who we are: {refusal}") from None
                self._log_once("waiting", f"cannot list TailorPOJobs: {refusal}: {advice}")
            except UnreachableError as error:
                self._log_once("waiting", str(error))
            await asyncio.sleep(START_PAUSE)

    async def _watch_jobs(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        """Starts kopf again whenever it gives up."""
        registry = kopf_handlers.registry(
            self._cache,
            reconciler.queue.add,
            kube_config.login(self._kubeconfig, self._context),
            self.settings.request_timeout,
        )
        while True:
            try:
                await kopf_handlers.watch(registry, self.settings.namespaces)
            except Exception as error:
                first_line = next(iter(str(error).splitlines()), "")
                self._log_once("watching TailorPOJobs", f"{type(error).__name__}: {first_line}: begins anew")
            await asyncio.sleep(WATCH_PAUSE)
            await self._resync(cluster, reconciler)

    async def _keep_resyncing(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        while True:
            await asyncio.sleep(self.settings.resync)
            await self._resync(cluster, reconciler)

    async def _resync(self, cluster: KubeClient, reconciler: Reconciler) -> None:
        """Lists and reconciles all jobs. A namespace that cannot be listed now is left for the next resync."""

        def resynced(key: Key) -> None:
            reconciler.queue.add(key, Priority.LOW if key in self._cache.jobs else Priority.HIGH)

        for namespace in self._namespaces:
            self._live.reset("list")  # the requests for several namespaces may take long if none is answered
            try:
                await relist(
                    partial(cluster.list_jobs, namespace),
                    put=self._cache.put_job,
                    drop_unlisted=partial(self._cache.drop_unlisted_jobs, namespace=namespace),
                    on_change=resynced,
                )
            except (UnreachableError, RefusedError) as problem:
                self._log_once("cannot list TailorPOJobs", str(problem))
                continue
            self._logged.clear()
        self._live.reset("list")
        reconciler.rendezvous.resync()

    def _log_once(self, what: str, message: str) -> None:
        """Logs a problem once, however long it lasts."""
        if self._logged.get(what) != message:
            log.warning("%s: %s", what, message)
            self._logged[what] = message

    async def _turn(self) -> None:
        """Shows that the event loop runs, whatever the tasks wait for."""
        while True:
            self._live.reset("turn")
            await asyncio.sleep(TURN_SECONDS)

    def _figures(self) -> metrics.Jobs:
        """Of all jobs, if this operator leads: otherwise each replica would count each job. Callable in any thread."""
        cached = self._cache.copy_jobs() if self._leads() else {}
        limit = self.settings.job_metrics_limit if self.settings.job_metrics else 0
        return job_metrics.jobs(cached, now(), limit)

    def _leaders(self) -> dict[Key, Pod]:
        """The first worker of each running job."""
        running = self._cache.running if self._leads() else ()
        return {key: pod for key in running if (pod := self._cache.rank_zero_pod(key)) is not None}

    def _leads(self) -> bool:
        return self._election is None or self._election.is_leader

    def _elected(self, reconciler: Reconciler) -> None:
        for key in self._cache.jobs:
            reconciler.queue.add(key)
        reconciler.rendezvous.resync()

    def _unready(self) -> str | None:
        return self._watching.overdue() if self._ready.is_set() else "not started"


def _identity() -> str:
    """Of this process and no other."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"
