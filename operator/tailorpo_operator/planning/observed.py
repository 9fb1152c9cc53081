"""What was observed of a job in the cluster, as values: one batch/v1 Job per attempt, its pods, reports and events.

It is parsed from the API's own JSON. No field of a status is taken for granted, because each is set at another time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from tailorpo_operator.api.naming import ATTEMPT, CONTAINER, GENERATION, INDEX, QUEUE, TEMPLATE_HASH
from tailorpo_trainer.spec.progress import MAX_BYTES, Progress

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptJob:
    """The batch/v1 Job of one attempt.

    failed: pods are being stopped, or have been, because one has failed. suspended: by a queue, never by the operator.
    gang_scheduled: the scheduler places all pods or none. passed_over: it names a queue, and none has ever held it.
    generation, template_hash: of the job it was made for.
    """

    name: str
    uid: str
    attempt: int
    workers: int
    created: datetime
    started: datetime | None = None
    suspended: bool = False
    deleting: bool = False
    complete: bool = False
    failed: bool = False
    gang_scheduled: bool = False
    passed_over: bool = False
    generation: int = 0
    template_hash: str = ""


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason with its message, as the API has them."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Exit:
    """How the trainer's container ended. text: its termination message."""

    code: int
    reason: str = ""
    text: str = ""

    @cached_property
    def progress(self) -> Progress | None:
        """The trainer's progress in the termination message; None if there is none."""
        return Progress.read(self.text)


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod of one worker.

    Attributes:
        index: completion index, which is the node rank.
        terminating: when its deletion was first observed, by this process' own clock: other clocks may differ.
        grace: seconds of its grace period once it is deleted; 0 for a deletion by force.
        memory: the memory limit of the trainer's container.
        disruption: the condition DisruptionTarget.
        unscheduled: why the scheduler has not given it a node.
        waiting: why its container does not run, by the kubelet.
        ended: why the pod itself failed, as for an eviction.
        warning: its newest Warning event.
    """

    name: str
    uid: str
    attempt: int
    index: int
    created: datetime
    phase: str = "Pending"
    node: str | None = None
    address: str | None = None
    ready: bool = False
    terminating: datetime | None = None
    grace: float = 0.0
    memory: str | None = None
    disruption: Reason | None = None
    unscheduled: Reason | None = None
    waiting: Reason | None = None
    ended: Reason | None = None
    exit: Exit | None = None
    warning: Reason | None = None

    @property
    def done(self) -> bool:
        """Whether none of its processes can run any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def ran(self) -> bool:
        """Whether its container has started."""
        return self.phase in ("Running", "Succeeded") or self.exit is not None

    @property
    def forced(self) -> bool:
        """Whether it was deleted by force and still exists, because of a finalizer such as the Job controller's."""
        return self.terminating is not None and not self.grace

    @property
    def succeeded(self) -> bool:
        """Whether its trainer succeeded: another container, such as a service mesh's, may keep the pod running."""
        return self.phase == "Succeeded" or (self.exit is not None and self.exit.code == 0)


@dataclass(frozen=True, slots=True)
class Report:
    """What rank 0 of an attempt reports at `/progress`.

    advanced_at, received_at: when its step was first received, and when it last was, by this process' own clock. pod:
    the uid of the pod that reported it.
    """

    attempt: int
    progress: Progress
    advanced_at: datetime
    received_at: datetime
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """All that was observed of one job.

    Attributes:
        attempt_jobs: its own, ordered by attempt.
        pods: of its own attempt Jobs, ordered by attempt and index.
        foreign_pods: pods with its label that belong to no Job of its own, such as those of a deleted job of its name.
        departed_pods: its own that were deleted after they had ended: a drained pod is deleted as soon as it ends.
        warning: the newest Warning event of the present attempt Job.
        refused: why the API server refused to create an object at the last try.
        unknown: what the job's spec asks for and this operator does not know, so that no attempt may begin.
        reused: a job or attempt Job of this name was deleted. The cache may not show yet all that is left of it.
        fresh: read from the API server just now. A cache lags behind: what is missing in it may exist.
    """

    attempt_jobs: tuple[AttemptJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    foreign_pods: tuple[Pod, ...] = ()
    departed_pods: tuple[Pod, ...] = ()
    report: Report | None = None
    warning: Reason | None = None
    refused: Reason | None = None
    unknown: Reason | None = None
    reused: bool = False
    fresh: bool = False

    def attempt_job(self, attempt: int) -> AttemptJob | None:
        return next((attempt_job for attempt_job in self.attempt_jobs if attempt_job.attempt == attempt), None)

    def pods_of(self, attempt: int) -> tuple[Pod, ...]:
        """The pods of an attempt, by index."""
        return tuple(pod for pod in self.pods if pod.attempt == attempt)

    def pods_with_evidence(self, attempt: int) -> tuple[Pod, ...]:
        """The pods of an attempt, with those that were deleted after they had ended."""
        return (*self.pods_of(attempt), *(pod for pod in self.departed_pods if pod.attempt == attempt))

    @property
    def living(self) -> tuple[Pod, ...]:
        """Pods that may still write to the storage."""
        return tuple(pod for pod in (*self.foreign_pods, *self.pods) if not pod.done)


def all_ready(attempt_job: AttemptJob, pods: tuple[Pod, ...]) -> bool:
    """Whether each worker of the attempt runs, or has succeeded already."""
    return len(pods) == attempt_job.workers and all(pod.ready or pod.succeeded for pod in pods)


def attempt_job(raw: Object) -> AttemptJob:
    """Parses a batch/v1 Job of the operator."""
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    held = {each["type"] for each in status.get("conditions") or () if each["status"] == "True"}
    return AttemptJob(
        name=meta["name"],
        uid=meta["uid"],
        attempt=attempt_of(meta),
        workers=spec.get("completions") or 1,
        created=time(meta["creationTimestamp"]),
        started=time(status["startTime"]) if status.get("startTime") else None,
        suspended=bool(spec.get("suspend")),
        deleting="deletionTimestamp" in meta,
        complete=bool(held & {"Complete", "SuccessCriteriaMet"}),
        failed=bool(held & {"Failed", "FailureTarget"}),
        gang_scheduled=bool(spec.get("scheduling")),
        passed_over=QUEUE in meta.get("labels", {}) and not _was_held(raw),
        generation=_number(meta.get("annotations", {}).get(GENERATION, "")),
        template_hash=meta.get("annotations", {}).get(TEMPLATE_HASH, ""),
    )


def _was_held(raw: Object) -> bool:
    """Whether a queue has ever held a Job: it suspends the Job when it is created, and resumes it later."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    if raw["spec"].get("suspend") or any(each["type"] == "Suspended" for each in conditions):
        return True
    # The Job controller may be too slow for the condition. Whoever resumes a Job writes its spec, as nobody else does.
    fields = raw["metadata"].get("managedFields") or ()
    return sum("f:spec" in each.get("fieldsV1", {}) and not each.get("subresource") for each in fields) > 1


def pod(raw: Object, terminating: datetime | None = None, warning: Reason | None = None) -> Pod:
    """Parses a pod of an attempt Job. terminating: when its deletion was first observed, if it is being deleted."""
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    state = _state(status)
    disruption, scheduled = conditions.get("DisruptionTarget"), conditions.get("PodScheduled")
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        attempt=attempt_of(meta),
        index=_number(meta.get("annotations", {}).get(INDEX, "")),
        created=time(meta["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        address=status.get("podIP"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        terminating=terminating if "deletionTimestamp" in meta else None,
        grace=float(meta.get("deletionGracePeriodSeconds") or 0),
        memory=_memory(spec),
        disruption=_reason(disruption) if disruption and disruption["status"] == "True" else None,
        unscheduled=_reason(scheduled) if scheduled and scheduled["status"] == "False" else None,
        waiting=_reason(state["waiting"]) if state.get("waiting") else None,
        ended=_reason(status) if status.get("reason") else None,
        exit=_exit(state["terminated"]) if state.get("terminated") else None,
        warning=warning,
    )


def attempt_of(meta: Object) -> int:
    """The attempt number in an object's labels; 0 for an object of another owner."""
    return _number(meta.get("labels", {}).get(ATTEMPT, ""))


def time(text: str) -> datetime:
    """Parses an instant as the API writes it."""
    return datetime.fromisoformat(text)


def owner(raw: Object, kind: str) -> str | None:
    """The uid of its owner of that kind; of several owners the one that controls it."""
    references: Iterable[Object] = raw["metadata"].get("ownerReferences") or ()
    found = sorted((each for each in references if each["kind"] == kind), key=lambda each: not each.get("controller"))
    return next((each["uid"] for each in found), None)


def _number(text: str) -> int:
    """0 for text that is no number of the operator: a user may give a pod any label and annotation."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _state(status: Object) -> Object:
    found = {each["name"]: each.get("state") or {} for each in status.get("containerStatuses") or ()}
    return found.get(CONTAINER, {})


def _reason(raw: Object) -> Reason:
    return Reason(raw.get("reason") or "", raw.get("message") or "")


def _exit(raw: Object) -> Exit:
    # A kubelet writes less, but a user with the right to write the status of pods may write more.
    return Exit(raw.get("exitCode", 0), raw.get("reason") or "", (raw.get("message") or "")[-MAX_BYTES:])


def _memory(spec: Object) -> str | None:
    container: Object = next((each for each in spec["containers"] if each["name"] == CONTAINER), {})
    limit = container.get("resources", {}).get("limits", {}).get("memory")
    return None if limit is None else str(limit)
