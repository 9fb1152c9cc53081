"""Reconciles one job at a time: observes the job and its children, plans, and carries out the plan."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tailorpo_operator import metrics
from tailorpo_operator.api.conditions import is_true
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job
from tailorpo_operator.controller import job_metrics
from tailorpo_operator.controller.attempt_creator import AttemptCreator
from tailorpo_operator.controller.job_parser import JobParser
from tailorpo_operator.controller.rendezvous_service import Rendezvous
from tailorpo_operator.controller.worker import Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.definition import ServedDefinition
from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.kube.transport import RefusedError
from tailorpo_operator.planning import pending_reason
from tailorpo_operator.planning.actions import (
    CreateAttempt,
    CreateService,
    DeleteJob,
    DeletePod,
    Plan,
    RecordEvent,
    StopAttempt,
)
from tailorpo_operator.planning.attempts import present
from tailorpo_operator.planning.events import event
from tailorpo_operator.planning.observed import Observed, Reason, Report
from tailorpo_operator.planning.plan import plan
from tailorpo_operator.planning.status_diff import difference, paths
from tailorpo_operator.settings import Settings
from tailorpo_trainer.spec.progress import line

log = logging.getLogger(__name__)

REMEMBERED_EVENTS = 20_000
UNKNOWN_SECONDS = 5.0
"""Until a job that is not understood is looked at again: the definition may have changed."""
WARNING_SECONDS = 10.0
"""Between requests for the events of a gang that does not start."""


class Reconciler:
    """Keeps no state that cannot be lost: after a restart all of it is read from the cluster again."""

    def __init__(
        self, cluster: KubeClient, cache: Cache, settings: Settings, leads: Callable[[], bool] = lambda: True
    ) -> None:
        self.queue: WorkQueue[Key] = WorkQueue()
        self.reports: dict[Key, Report] = {}
        self._cluster, self._cache, self._settings = cluster, cache, settings
        self._writes = RateLimit(settings.status_rate, max(1, int(settings.status_rate)))
        self._written: dict[Key, float] = {}
        self._recorded: OrderedDict[str, None] = OrderedDict()
        self._warnings: dict[str, tuple[float, Reason | None]] = {}
        self._stopping = False
        self._creator = AttemptCreator(cluster, settings.image)
        self._parser = JobParser(ServedDefinition(cluster), settings.copied_prefixes)
        self._dropped: frozenset[tuple[str, ...]] = frozenset()
        self.rendezvous = Rendezvous(cluster, cache, leads)
        self._worker = Worker(
            self.queue, self._timed, may_act=lambda: not self._stopping and leads(), log_fields=_log_fields
        )

    async def stop(self, seconds: float) -> None:
        """Starts no further reconcile, and waits for those in progress, for so many seconds at most."""
        self._stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.queue.idle(), seconds)

    async def work(self) -> None:
        """One worker. Runs until it is cancelled."""
        await self._worker.run()

    async def _timed(self, key: Key) -> None:
        with metrics.RECONCILE.time():
            await self.reconcile(key)

    async def reconcile(self, key: Key) -> None:
        """Reconciles one job."""
        raw = self._cache.job(key)
        if raw is None:
            self._forget(key)
            return
        parsed = await self._parse(key, raw)
        if parsed is None:
            return
        job, unknown = parsed
        observed = replace(await self._observe(key, job), unknown=unknown)
        planned = plan(job, observed, now(), self._settings.retries)
        if planned.fresh:
            live = await self._observe_live(key)
            if live is None:
                return
            job, observed = live
            planned = plan(job, observed, now(), self._settings.retries)
        await self._carry_out(key, job, observed, planned)

    # Observing

    async def _observe(self, key: Key, job: Job) -> Observed:
        """The job's children, from the cache."""
        observed, report = self._cache.observe(job), self.reports.get(key)
        self._cache.forget_departed_pods(job)
        # A report of any other pod is about an earlier job of the same name.
        if report is not None and any(pod.uid == report.pod for pod in observed.pods):
            observed = replace(observed, report=report)
        attempt = present(job.status)
        attempt_job = observed.attempt_job(attempt.number) if attempt is not None else None
        if attempt_job is None or is_true(job.status, "Running"):
            return observed
        pods = observed.pods_of(attempt_job.attempt)
        if len(pods) < attempt_job.workers:
            return replace(observed, warning=await self._warning(key.namespace, attempt_job.uid, attempt_job.created))
        if (stuck := pending_reason.stuck(pods)) is not None:
            warning = await self._warning(key.namespace, stuck.uid, stuck.created)
            pods = tuple(replace(pod, warning=warning) if pod is stuck else pod for pod in observed.pods)
            return replace(observed, pods=pods)
        return observed

    async def _warning(self, namespace: str, uid: str, created: datetime) -> Reason | None:
        """The newest warning event of an object that should have started."""
        clock = asyncio.get_running_loop().time()
        asked, warning = self._warnings.get(uid, (0.0, None))
        young = (now() - created).total_seconds() < 1.0
        if not young and clock - asked > WARNING_SECONDS:
            warning = await self._cluster.latest_warning(namespace, uid)
            self._warnings[uid] = (clock, warning)
            while len(self._warnings) > REMEMBERED_EVENTS:
                del self._warnings[next(iter(self._warnings))]
        return warning

    async def _observe_live(self, key: Key) -> tuple[Job, Observed] | None:
        """The job and its children, from the API server. None if the job does not exist or cannot be parsed."""
        before = self._cache.jobs.get(key)
        raw = await self._cluster.get_job(key.namespace, key.name)
        if raw is None:
            known = self._cache.jobs.get(key)
            # A cached job with another uid has been created since the request.
            if known is not None and before is not None and known.uid == before.uid:
                self._cache.forget_job(key)
            return None
        attempt_jobs, pods, listed = await self._cluster.list_children(key.namespace, key.name)
        self._cache.put_job(raw)
        self._cache.replace_children(key, attempt_jobs, pods, listed, now())
        parsed = await self._parse(key, raw)
        if parsed is None:
            return None
        job, unknown = parsed
        return job, replace(await self._observe(key, job), unknown=unknown, fresh=True)

    # Carrying out

    async def _carry_out(self, key: Key, job: Job, observed: Observed, planned: Plan) -> None:
        try:
            for creation in planned.create:
                await self._create(job, creation)
        except RefusedError as refusal:
            log.warning("refused: %s", refusal, extra=_log_fields(key))
            planned = plan(job, replace(observed, refused=refusal.as_reason, fresh=True), now(), self._settings.retries)
        # All of many new jobs get their pods before any status is written. A job that has attempts does not wait: the
        # end of one may have been judged, and is lost if it is not written.
        if planned.create and not job.status.attempts and self.queue.defer(key):
            return
        for announcement in planned.events:
            await self._record(job, announcement)
        if not await self._write(key, job, planned):
            return
        for deletion in planned.delete:
            match deletion:
                case StopAttempt(attempt_job):
                    await self._cluster.delete_attempt_job(key.namespace, attempt_job)
                    self._cache.mark_deleting(key, attempt_job)
                case DeletePod(pod, force):
                    await self._cluster.delete_pod(key.namespace, pod, force=force)
                case DeleteJob():
                    await self._cluster.delete_job(job)
        if planned.requeue_at is not None:
            self.queue.add_after(key, (planned.requeue_at - now()).total_seconds())

    async def _create(self, job: Job, creation: CreateService | CreateAttempt) -> None:
        match creation:
            case CreateService():
                await self.rendezvous.ensure(job.namespace)
            case CreateAttempt(number):
                self._cache.put_attempt_job(await self._creator.create(job, number))
                self.rendezvous.enqueue(Key(job.namespace, job.name))  # its Service may have been deleted since

    async def _record(self, job: Job, announcement: RecordEvent) -> None:
        if announcement.key in self._recorded:
            return
        try:
            await self._cluster.create_event(event(job, announcement, now()))
        except RefusedError as refusal:  # as by a quota; the status is written nevertheless
            log.warning("event refused: %s", refusal, extra=_log_fields(Key(job.namespace, job.name)))
        self._recorded[announcement.key] = None
        while len(self._recorded) > REMEMBERED_EVENTS:
            self._recorded.popitem(last=False)

    async def _parse(self, key: Key, raw: Mapping[str, Any]) -> tuple[Job, Reason | None] | None:
        """The job, and what of it keeps further attempts from beginning. None for a job that no plan can be made for:
        its status says so."""
        job, unknown = await self._parser.parse(key, raw)
        if unknown is not None:
            self.queue.add_after(key, UNKNOWN_SECONDS)
        if job is not None:
            return job, unknown
        assert unknown is not None
        spec: Any = raw.get("spec")
        about = Job.model_construct(metadata=raw["metadata"], spec=spec)
        event_key = f"{about.uid}/{about.generation}/{unknown.reason}/{unknown.message}"
        await self._record(about, RecordEvent("Warning", unknown.reason, unknown.message, event_key))
        status = raw.get("status") or {}
        shown = {"phase": "Pending", **status, "reason": unknown.reason, "message": line(unknown.message, 512)}
        # A result stays as it was written.
        if shown != status and not status.get("completionTime"):
            await self._put_status(key, raw, shown)
        return None

    async def _write(self, key: Key, job: Job, planned: Plan) -> bool:
        """Writes the status if the change is worth a request. Returns whether the plan is still valid."""
        kind = difference(job.status, planned.status, self._dropped)
        if kind == "none" or (kind == "progress" and not self._may_write_progress(key)):
            return True
        raw = {"metadata": job.metadata, "status": self._raw_status(key)}
        if not await self._put_status(key, raw, planned.status.to_dict()):
            return False
        self._written[key] = asyncio.get_running_loop().time()
        _log_phase(key, job, planned)
        job_metrics.observe(key.namespace, job.status, planned.status)
        return True

    async def _put_status(self, key: Key, raw: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Writes a status. Returns whether it was computed from the newest version of the job."""
        try:
            written = await self._cluster.write_status(raw, status)
        except RefusedError as refusal:
            if refusal.status == 404:
                self._forget(key)
                return False
            if refusal.status != 409:
                raise
            # The job has changed since it was read; the watch may have missed the change.
            if (newest := await self._cluster.get_job(key.namespace, key.name)) is not None:
                self._cache.put_job(newest)
                self.queue.add(key)
            return False
        self._cache.put_job(written)
        self._note_dropped(status, written.get("status") or {})
        return True

    def _note_dropped(self, sent: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Notes which fields a definition that is older than this operator does not keep: they are no difference."""
        held = {*paths(kept)}
        dropped = (self._dropped | {*paths(sent)}) - held
        if new := dropped - self._dropped:
            names = ", ".join(sorted(".".join(path) for path in new))
            log.warning("the CustomResourceDefinition keeps no status.%s: apply the one of this version", names)
        self._dropped = frozenset(dropped)

    def _raw_status(self, key: Key) -> Mapping[str, Any]:
        raw = self._cache.job(key)
        return {} if raw is None else raw.get("status") or {}

    def _may_write_progress(self, key: Key) -> bool:
        """Whether a status that only reports progress may be written now. If not, the key is added when it may."""
        clock = asyncio.get_running_loop().time()
        wait = self._written.get(key, -self._settings.status_interval) + self._settings.status_interval - clock
        if wait > 0 or not self._writes.try_take():
            self.queue.add_after(key, max(wait, 1.0))
            return False
        return True

    def _forget(self, key: Key) -> None:
        self.reports.pop(key, None)
        self._written.pop(key, None)
        self._parser.forget(key)
        self._creator.forget(key)
        self._worker.forget(key)
        self.rendezvous.enqueue(key)


def now() -> datetime:
    return datetime.now(UTC)


def _log_fields(key: Key, attempt: int | None = None) -> dict[str, Any]:
    return {"job": f"{key.namespace}/{key.name}"} | ({} if attempt is None else {"attempt": attempt})


def _log_phase(key: Key, job: Job, planned: Plan) -> None:
    """Logs a change of the phase."""
    before, after = job.status, planned.status
    attempt = after.attempts[-1] if after.attempts else None
    number = None if attempt is None else attempt.number
    if before.phase != after.phase or not before.conditions:
        log.info("%s: %s", after.phase, after.message, extra=_log_fields(key, number))
