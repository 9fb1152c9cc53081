"""Looks at one job at a time, and makes the cluster what the plan says."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from tailorpo_operator import metrics
from tailorpo_operator.api.conditions import is_true
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import indexed_job
from tailorpo_operator.controller.rendezvous_service import Rendezvous
from tailorpo_operator.controller.worker import Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.client import KubeClient
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
from tailorpo_operator.planning.status_diff import difference, newly_ended
from tailorpo_operator.settings import Settings

log = logging.getLogger(__name__)

REMEMBERED_EVENTS = 20_000
TROUBLE_SECONDS = 10.0
"""Between questions for the events of a gang that does not start."""


class Reconciler:
    """Everything it knows of the cluster it may forget: after a restart it is found again."""

    def __init__(
        self, cluster: KubeClient, cache: Cache, settings: Settings, leads: Callable[[], bool] = lambda: True
    ) -> None:
        self.queue: WorkQueue[Key] = WorkQueue()
        self.reports: dict[Key, Report] = {}
        self._cluster, self._cache, self._settings = cluster, cache, settings
        self._writes = RateLimit(settings.status_rate, max(1, int(settings.status_rate)))
        self._told: dict[Key, float] = {}
        self._sent: OrderedDict[str, None] = OrderedDict()
        self._trouble: dict[str, tuple[float, Reason | None]] = {}
        self._stopping = False
        self.rendezvous = Rendezvous(cluster, cache, leads)
        self._worker = Worker(self.queue, self._timed, acts=lambda: not self._stopping and leads(), about=_about)

    async def stop(self, seconds: float) -> None:
        """Takes no job any more, and waits until the looks that are under way have ended, or for so long."""
        self._stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.queue.idle(), seconds)

    async def work(self) -> None:
        """One worker; runs until it is cancelled."""
        await self._worker.run()

    async def _timed(self, key: Key) -> None:
        with metrics.RECONCILE.time():
            await self.reconcile(key)

    async def reconcile(self, key: Key) -> None:
        """One look at one job."""
        tree = self._cache.job(key)
        if tree is None:
            self._forget(key)
            return
        job = await self._understood(key, tree)
        if job is None:
            return
        seen = await self._seen(key, job)
        made = plan(job, seen, now(), self._settings.retries)
        if made.fresh:
            fresh = await self._look(key)
            if fresh is None:
                return
            job, seen = fresh
            made = plan(job, seen, now(), self._settings.retries)
        await self._carry_out(key, job, seen, made)

    # What there is

    async def _seen(self, key: Key, job: Job) -> Observed:
        seen, report = self._cache.observe(job), self.reports.get(key)
        self._cache.forget_departed_pods(job)
        if report is not None and any(pod.uid == report.pod for pod in seen.pods):  # else of a job that had this name
            seen = replace(seen, report=report)
        attempt = present(job.status)
        attempt_job = seen.attempt_job(attempt.number) if attempt is not None else None
        if attempt_job is None or is_true(job.status, "Running"):
            return seen
        pods = seen.pods_of(attempt_job.attempt)
        if len(pods) < attempt_job.workers:
            return replace(seen, warning=await self._troubled(key.namespace, attempt_job.uid, attempt_job.created))
        if (stuck := pending_reason.stuck(pods)) is not None:
            told = await self._troubled(key.namespace, stuck.uid, stuck.created)
            pods = tuple(replace(pod, warning=told) if pod is stuck else pod for pod in seen.pods)
            return replace(seen, pods=pods)
        return seen

    async def _troubled(self, namespace: str, uid: str, created: datetime) -> Reason | None:
        """What events say of an object that should be on its way."""
        clock = asyncio.get_running_loop().time()
        asked, told = self._trouble.get(uid, (0.0, None))
        young = (now() - created).total_seconds() < 1.0
        if not young and clock - asked > TROUBLE_SECONDS:
            told = await self._cluster.latest_warning(namespace, uid)
            self._trouble[uid] = (clock, told)
            while len(self._trouble) > REMEMBERED_EVENTS:
                del self._trouble[next(iter(self._trouble))]
        return told

    async def _look(self, key: Key) -> tuple[Job, Observed] | None:
        """The job and its children as they are in the API server now."""
        before = self._cache.jobs.get(key)
        tree = await self._cluster.get_job(key.namespace, key.name)
        if tree is None:
            known = self._cache.jobs.get(key)
            if known is not None and before is not None and known.uid == before.uid:  # else it was applied again since
                self._cache.forget_job(key)
            return None
        attempt_jobs, pods, listed = await self._cluster.list_children(key.namespace, key.name)
        self._cache.put_job(tree)
        self._cache.replace_children(key, attempt_jobs, pods, listed, now())
        job = await self._understood(key, tree)
        return None if job is None else (job, replace(await self._seen(key, job), fresh=True))

    # What there shall be

    async def _carry_out(self, key: Key, job: Job, seen: Observed, made: Plan) -> None:
        try:
            for creation in made.create:
                await self._create(job, creation)
        except RefusedError as refusal:
            log.warning("refused: %s", refusal, extra=_about(key))
            made = plan(job, replace(seen, refused=refusal.as_reason, fresh=True), now(), self._settings.retries)
        # Of many new jobs all get their pods first, and then are told of them. Of others an end may have been judged.
        if made.create and not job.status.attempts and self.queue.put_off(key):
            return
        for announcement in made.events:
            await self._announce(job, announcement)
        if not await self._write(key, job, made):
            return
        for deletion in made.delete:
            match deletion:
                case StopAttempt(attempt_job):
                    await self._cluster.delete_attempt_job(key.namespace, attempt_job)
                    self._cache.mark_deleting(key, attempt_job)
                case DeletePod(pod, force):
                    await self._cluster.delete_pod(key.namespace, pod, force=force)
                case DeleteJob():
                    await self._cluster.delete_job(job)
        if made.requeue_at is not None:
            self.queue.add_after(key, (made.requeue_at - now()).total_seconds())

    async def _create(self, job: Job, creation: CreateService | CreateAttempt) -> None:
        match creation:
            case CreateService():
                await self.rendezvous.ensure(job.namespace)
            case CreateAttempt(number):
                try:
                    attempt_job = indexed_job.attempt(job, number, self._settings.image)
                except indexed_job.TooLarge as problem:
                    raise RefusedError(422, indexed_job.TooLarge.__name__, str(problem)) from None
                attempt_job = indexed_job.with_owner(attempt_job, job)
                if job.spec.scheduling.gang == "Required" and indexed_job.wants_gang(job):
                    await self._require_gangs(attempt_job)
                self._cache.put_attempt_job(await self._cluster.create_attempt_job(attempt_job))
                self.rendezvous.heard_of(Key(job.namespace, job.name))  # somebody may have deleted it meanwhile

    async def _require_gangs(self, attempt_job: dict[str, Any]) -> None:
        try:
            if await self._cluster.supports_gang_scheduling(attempt_job):
                return
        except RefusedError as refusal:
            if refusal.reason == "AlreadyExists":
                return
            raise
        words = (
            "spec.scheduling.gang: Required, and this cluster schedules no gangs: set it to Auto, name a queue in "
            "spec.scheduling.queueName, or switch on Kubernetes' feature gates GenericWorkload and WorkloadWithJob"
        )
        raise RefusedError(422, "NoGangScheduling", words)

    async def _announce(self, job: Job, announcement: RecordEvent) -> None:
        if announcement.key in self._sent:
            return
        try:
            await self._cluster.create_event(event(job, announcement, now()))
        except RefusedError as refusal:  # as by a quota: a status matters more
            log.warning("event refused: %s", refusal, extra=_about(Key(job.namespace, job.name)))
        self._sent[announcement.key] = None
        while len(self._sent) > REMEMBERED_EVENTS:
            self._sent.popitem(last=False)

    async def _understood(self, key: Key, tree: Mapping[str, Any]) -> Job | None:
        """None for a job that another version of the definition let in, or whose status a newer operator wrote."""
        try:
            return Job.model_validate(tree)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
        spec: Any = tree.get("spec")
        job = Job.model_construct(metadata=tree["metadata"], spec=spec)
        words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        announcement = RecordEvent(
            "Warning",
            "NotUnderstood",
            f"{words}: left alone until operator and CustomResourceDefinition are of one version",
            f"{job.uid}/{job.generation}/NotUnderstood/{words}",
        )
        if announcement.key not in self._sent:
            log.error("not understood: %s", words, extra=_about(key))
        await self._announce(job, announcement)
        return None

    async def _write(self, key: Key, job: Job, made: Plan) -> bool:
        """The status, if it is worth it. Returns whether the plan still holds."""
        kind = difference(job.status, made.status)
        if kind == "none" or (kind == "progress" and not self._may_tell(key)):
            return True
        tree = {"metadata": job.metadata, "status": self._raw_status(key)}
        try:
            written = await self._cluster.write_status(tree, made.status.to_dict())
        except RefusedError as refusal:
            if refusal.status == 404:
                self._forget(key)
                return False
            if refusal.status != 409:
                raise
            # Somebody wrote meanwhile: what they wrote comes by the watch, or was missed by it.
            if (newest := await self._cluster.get_job(key.namespace, key.name)) is not None:
                self._cache.put_job(newest)
                self.queue.add(key)
            return False
        self._cache.put_job(written)
        self._told[key] = asyncio.get_running_loop().time()
        _log(key, job, made)
        return True

    def _raw_status(self, key: Key) -> Mapping[str, Any]:
        tree = self._cache.job(key)
        return {} if tree is None else tree.get("status") or {}

    def _may_tell(self, key: Key) -> bool:
        """Whether a write that only tells of progress may be made now; if not, there is a look when it may."""
        clock = asyncio.get_running_loop().time()
        wait = self._told.get(key, -self._settings.status_interval) + self._settings.status_interval - clock
        if wait > 0 or not self._writes.try_take():
            self.queue.add_after(key, max(wait, 1.0))
            return False
        return True

    def _forget(self, key: Key) -> None:
        self.reports.pop(key, None)
        self._told.pop(key, None)
        self._worker.forget(key)
        self.rendezvous.heard_of(key)


def now() -> datetime:
    return datetime.now(UTC)


def _about(key: Key, attempt: int | None = None) -> dict[str, Any]:
    return {"job": f"{key.namespace}/{key.name}"} | ({} if attempt is None else {"attempt": attempt})


def _log(key: Key, job: Job, made: Plan) -> None:
    """One line whenever the phase changes, or an attempt ends."""
    before, after = job.status, made.status
    attempt = after.attempts[-1] if after.attempts else None
    number = None if attempt is None else attempt.number
    for over in newly_ended(before, after):
        metrics.ATTEMPTS.labels(over.reason).inc()
    if before.phase != after.phase or not before.conditions:
        log.info("%s: %s", after.phase, after.message, extra=_about(key, number))
