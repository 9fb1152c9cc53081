"""The informer cache: what lists, watches and the answers to our own writes have shown of every job.

A watch may lag, and it misses what is deleted while it is broken off. Therefore `drop_unlisted_*` removes what a list
does not contain any more, and a decision that must not depend on a lag reads the API server first.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job
from tailorpo_operator.kube.child_store import ChildStore, Entry, Object, key_of, remember, resource_version
from tailorpo_operator.planning import observed
from tailorpo_operator.planning.observed import AttemptJob, Observed, Pod

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""An annotation with the whole job."""
WAITING_PHASES = ("Pending", "Starting", "Restarting")


class CachedJob(NamedTuple):
    """The fields of a job that are read often, and the whole job as JSON, which takes a tenth of the memory.

    Attributes:
        unready_since: when it began to wait for its pods; None if it does not wait.
        multi_worker: whether it has more than one worker.
        text: the job as JSON, without managed fields and what kubectl has applied.
    """

    resource_version: int
    uid: str
    created: datetime
    phase: str
    unready_since: datetime | None
    multi_worker: bool
    text: bytes


class Cache:
    """By job. Attempt Jobs and pods are kept as values, without the fields that nothing needs."""

    def __init__(self) -> None:
        self._jobs: dict[Key, CachedJob] = {}
        self._running: set[Key] = set()
        self._multi_worker_jobs = Counter[str]()
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._attempt_jobs = ChildStore[AttemptJob](self._tombstones, self._attempt_job_dropped)
        self._pods = ChildStore[Pod](self._tombstones, self._pod_dropped)
        self._departed: dict[Key, list[Entry[Pod]]] = {}
        self._terminating: dict[str, datetime] = {}
        self._reused_names: OrderedDict[Key, None] = OrderedDict()

    # Jobs

    @property
    def jobs(self) -> Mapping[Key, CachedJob]:
        return self._jobs

    def copy_jobs(self) -> Mapping[Key, CachedJob]:
        """A copy, which another thread may ask for and read while this one changes the cache."""
        return self._jobs.copy()

    @property
    def running(self) -> Iterable[Key]:
        """Jobs whose phase is Running."""
        return self._running

    def job(self, key: Key) -> dict[str, Any] | None:
        cached = self._jobs.get(key)
        return None if cached is None else orjson.loads(cached.text)

    def put_job(self, raw: Object) -> Key:
        """Stores a job that was observed or written, unless a newer version is cached."""
        key = Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        cached = self._jobs.get(key)
        newer = cached is None or resource_version(raw) >= cached.resource_version
        if raw["metadata"]["uid"] not in self._tombstones and newer:
            self._set_job(key, _cached_job(raw))
        return key

    def drop_job(self, raw: Object) -> Key:
        """Removes a job that was deleted, but not a newer job of the same name."""
        key = Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        remember(self._tombstones, raw["metadata"]["uid"])
        cached = self._jobs.get(key)
        if cached is not None and cached.uid == raw["metadata"]["uid"]:
            self.forget_job(key)
        return key

    def forget_job(self, key: Key) -> None:
        """Removes a job that does not exist any more, although no watch has reported its deletion."""
        self._set_job(key, None)
        self._departed.pop(key, None)

    def drop_unlisted_jobs(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """Removes the jobs that a list of a namespace (None: of all) did not contain; returns their keys.

        uids, listed: all uids of the list, and its resource version. What is newer than the list stays.
        """
        jobs = ((key, cached) for key, cached in self._jobs.items() if namespace in (None, key.namespace))
        dropped = [key for key, cached in jobs if cached.uid not in uids and cached.resource_version <= listed]
        for key in dropped:
            self.forget_job(key)
        return dropped

    def has_multi_worker_jobs(self, namespace: str) -> bool:
        return namespace in self._multi_worker_jobs

    def _set_job(self, key: Key, job: CachedJob | None) -> None:
        before, namespace = self._jobs.get(key), key.namespace
        if before is not None and (job is None or job.uid != before.uid):
            remember(self._reused_names, key)
        counts = self._multi_worker_jobs
        counts[namespace] += (job is not None and job.multi_worker) - (before is not None and before.multi_worker)
        if not counts[namespace]:
            del counts[namespace]
        if job is None:
            self._jobs.pop(key, None)
        else:
            self._jobs[key] = job
        (self._running.add if job is not None and job.phase == "Running" else self._running.discard)(key)

    # Children

    def put_attempt_job(self, raw: Object) -> Key | None:
        if key_of(raw) is None:
            return None
        return self._attempt_jobs.put(raw, observed.attempt_job(raw), observed.owner(raw, "TailorPOJob"))

    def put_pod(self, raw: Object, now: datetime) -> Key | None:
        if key_of(raw) is None:
            return None
        uid, deleted = raw["metadata"]["uid"], "deletionTimestamp" in raw["metadata"]
        since = self._terminating.setdefault(uid, now) if deleted and uid not in self._tombstones else None
        return self._pods.put(raw, observed.pod(raw, since), observed.owner(raw, "Job"))

    def drop_attempt_job(self, raw: Object) -> Key | None:
        return self._attempt_jobs.drop(raw)

    def drop_pod(self, raw: Object) -> Key | None:
        self._terminating.pop(raw["metadata"]["uid"], None)
        return self._pods.drop(raw)

    def mark_deleting(self, key: Key, attempt_job: AttemptJob) -> None:
        """Records that we have deleted this attempt Job, before the watch reports it."""
        if (entry := self._attempt_jobs.get(key, attempt_job.uid)) is not None:
            self._attempt_jobs.update(key, attempt_job.uid, replace(entry.value, deleting=True))

    def drop_unlisted_attempt_jobs(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """As `drop_unlisted_jobs`; returns the keys of the jobs that they belonged to."""
        return self._attempt_jobs.drop_unlisted(uids, listed, self._attempt_jobs.job_keys(namespace))

    def drop_unlisted_pods(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """As `drop_unlisted_attempt_jobs`."""
        return self._pods.drop_unlisted(uids, listed, self._pods.job_keys(namespace))

    def replace_children(
        self, key: Key, attempt_jobs: Iterable[Object], pods: Iterable[Object], listed: int, now: datetime
    ) -> None:
        """Replaces all children of one job by lists of them, which are at least of the version `listed`."""
        uids = {raw["metadata"]["uid"] for raw in attempt_jobs if self.put_attempt_job(raw) is not None}
        self._attempt_jobs.drop_unlisted(uids, listed, [key])
        uids = {raw["metadata"]["uid"] for raw in pods if self.put_pod(raw, now) is not None}
        self._pods.drop_unlisted(uids, listed, [key])

    def forget_departed_pods(self, job: Job) -> None:
        """Forgets departed pods that no decision needs any more: of ended attempts, and those that are not the job's.

        The reconciler calls this after `observe`; the cache cannot do it alone, for it does not parse a job's status.
        """
        key = Key(job.namespace, job.name)
        if key in self._departed:
            self._departed[key] = self._needed_departed(job, self._is_own(job))
            if not self._departed[key]:
                del self._departed[key]

    # Queries: they change nothing

    def observe(self, job: Job) -> Observed:
        """Everything that is cached of a job, and the remains of an earlier job that had its name."""
        key, is_own = Key(job.namespace, job.name), self._is_own(job)
        own, foreign_pods = list[Pod](), list[Pod]()
        for entry in self._pods.entries(key):
            # A pod that no Job controls, such as a copy for debugging, is not a worker; but it may write where they do.
            (own if is_own(entry) else foreign_pods).append(entry.value)
        return Observed(
            attempt_jobs=tuple(sorted(self._own_attempt_jobs(job), key=lambda attempt_job: attempt_job.attempt)),
            pods=tuple(sorted(own, key=lambda pod: (pod.attempt, pod.index))),
            foreign_pods=tuple(foreign_pods),
            departed_pods=tuple(entry.value for entry in self._needed_departed(job, is_own)),
            reused=key in self._reused_names,
        )

    def needs_rendezvous(self, key: Key) -> bool:
        """Whether workers of a job may still be trying to find each other."""
        attempt_jobs = self._attempt_jobs.values(key)
        return any(each.workers > 1 and not each.complete and not each.failed for each in attempt_jobs)

    @property
    def rendezvous_namespaces(self) -> set[str]:
        """Namespaces of the jobs for which `needs_rendezvous` holds."""
        return {key.namespace for key in self._attempt_jobs.job_keys() if self.needs_rendezvous(key)}

    def has_multi_worker_attempts(self, namespace: str) -> bool:
        """Whether a namespace has an attempt Job of more than one worker, even if its job is deleted."""
        keys = self._attempt_jobs.job_keys(namespace)
        return any(each.workers > 1 for key in keys for each in self._attempt_jobs.values(key))

    def awaits_pods(self, key: Key) -> bool:
        """Whether a job has an attempt Job of which no pod has started or is being deleted."""
        pods = self._pods.values(key)
        all_pending = all(pod.phase == "Pending" and pod.terminating is None for pod in pods)
        return bool(self._attempt_jobs.values(key)) and all_pending

    def rank_zero_pod(self, key: Key) -> Pod | None:
        """The first worker of a job's newest attempt, if it runs and has an address."""
        if (cached := self._jobs.get(key)) is None:
            return None
        pods = [entry.value for entry in self._pods.entries(key) if entry.owner is not None]
        pods = [pod for pod in pods if pod.created >= cached.created]
        newest = max((pod.attempt for pod in pods), default=0)
        running = (pod for pod in pods if pod.attempt == newest and pod.phase == "Running")
        return next((pod for pod in running if pod.index == 0 and pod.address and pod.terminating is None), None)

    def _own_attempt_jobs(self, job: Job) -> list[AttemptJob]:
        entries = self._attempt_jobs.entries(Key(job.namespace, job.name))
        return [entry.value for entry in entries if entry.owner == job.uid]

    def _is_own(self, job: Job) -> Callable[[Entry[Pod]], bool]:
        """Tells whether a pod is a worker of this job.

        The name of a deleted attempt Job may belong to another one by now: to an attempt that was created but never
        written to the status, or to a job of the same name that was deleted and created again within a second.
        """
        uids = {attempt_job.attempt: attempt_job.uid for attempt_job in self._own_attempt_jobs(job)}
        created = observed.time(job.metadata["creationTimestamp"])

        def is_own(entry: Entry[Pod]) -> bool:
            own = entry.owner is not None and entry.owner == uids.get(entry.value.attempt, entry.owner)
            return own and entry.value.created >= created

        return is_own

    def _needed_departed(self, job: Job, is_own: Callable[[Entry[Pod]], bool]) -> list[Entry[Pod]]:
        """The departed pods that may still explain how an attempt ended: its end is not in the status yet."""
        ended = max((each.number for each in job.status.attempts if each.end is not None), default=0)
        departed = self._departed.get(Key(job.namespace, job.name), ())
        return [entry for entry in departed if is_own(entry) and entry.value.attempt > ended]

    def _attempt_job_dropped(self, key: Key, uid: str) -> None:
        remember(self._reused_names, key)

    def _pod_dropped(self, key: Key, uid: str) -> None:
        """Keeps a deleted pod that has ended: only it may tell how its attempt ended, until that is decided."""
        self._terminating.pop(uid, None)
        entry = self._pods.get(key, uid)
        if key in self._jobs and entry is not None and entry.value.exit is not None:
            self._departed.setdefault(key, []).append(entry)


def is_multi_worker(raw: Object) -> bool:
    """Whether a job has several workers; False for a spec that only another version of the definition admits."""
    spec = raw.get("spec")
    workers = spec.get("workers") if isinstance(spec, Mapping) else None
    return isinstance(workers, int) and workers > 1


def _cached_job(raw: Object) -> CachedJob:
    meta = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    if "annotations" in meta:
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != LAST_APPLIED}
    status = raw.get("status") or {}
    ready = next((each for each in status.get("conditions", ()) if each["type"] == "PodsReady"), {"status": "True"})
    unready = status.get("phase") in WAITING_PHASES and ready["status"] != "True"
    return CachedJob(
        resource_version(raw),
        meta["uid"],
        observed.time(meta["creationTimestamp"]),
        str(status.get("phase", "Pending")),
        observed.time(ready["lastTransitionTime"]) if unready else None,
        is_multi_worker(raw),
        orjson.dumps({**raw, "metadata": meta}),
    )
