"""What there is of a job in the cluster, as values: its gangs (one batch/v1 Job an attempt), their pods, what was said.

Read from the API's own JSON, of which nothing is taken for granted: a status arrives bit by bit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from tailorpo_operator.api.naming import ATTEMPT, CONTAINER, INDEX
from tailorpo_trainer.spec.progress import MAX_BYTES, Progress

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptJob:
    """The batch/v1 Job of one attempt.

    failed: pods are being stopped, or have been, because one has failed. suspended: by a queue; never by us. together:
    the scheduler places all pods or none.
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
    together: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason with its text, in the API's words."""

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
        """The trainer's last word; None if it had none."""
        return Progress.read(self.text)


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker.

    Attributes:
        index: completion index, which is the node rank.
        terminating: when its deletion was first seen, by this process' own clock: others' may differ.
        disruption: the condition DisruptionTarget.
        unscheduled: why it has no node, if the scheduler said so.
        waiting: why its container does not run, if the kubelet said so.
        ended: why the pod itself failed, as for an eviction.
        trouble: what the newest Warning event says of it.
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
        """Whether no process of it can run any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def ran(self) -> bool:
        """Whether its container has begun."""
        return self.phase in ("Running", "Succeeded") or self.exit is not None

    @property
    def forced(self) -> bool:
        """Whether it was deleted by force, and a finalizer keeps it, as the Job controller's does."""
        return self.terminating is not None and not self.grace

    @property
    def succeeded(self) -> bool:
        """Whether its trainer is done: another container, as a mesh's, may keep the pod."""
        return self.phase == "Succeeded" or (self.exit is not None and self.exit.code == 0)


@dataclass(frozen=True, slots=True)
class Report:
    """What rank 0 of an attempt says at `/progress`.

    moved, told: when its step was first told, and when it last was, by this process' own clock. pod: the uid of who
    told it.
    """

    attempt: int
    progress: Progress
    moved: datetime
    told: datetime
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """All of a job's.

    Attributes:
        gangs: its own, by attempt.
        pods: of its own gangs, by attempt and index.
        strangers: pods with its label that are of no gang of its own, as of a deleted job of the same name.
        departed: its own that had told how they ended, and are gone: a drained pod goes at once when it has ended.
        trouble: what the newest Warning event says of the present gang.
        refused: why the API server did not take what was to be made, the last time it was tried.
        reused: a job or a gang of this name has gone. Watches may not have shown yet all that is left of it.
        fresh: read from the API server just now. A watch may lag: what is missing in it may be there.
    """

    attempt_jobs: tuple[AttemptJob, ...] = ()
    pods: tuple[Pod, ...] = ()
    foreign_pods: tuple[Pod, ...] = ()
    departed_pods: tuple[Pod, ...] = ()
    report: Report | None = None
    warning: Reason | None = None
    refused: Reason | None = None
    reused: bool = False
    fresh: bool = False

    def attempt_job(self, attempt: int) -> AttemptJob | None:
        return next((attempt_job for attempt_job in self.attempt_jobs if attempt_job.attempt == attempt), None)

    def pods_of(self, attempt: int) -> tuple[Pod, ...]:
        """The pods of an attempt, by index."""
        return tuple(pod for pod in self.pods if pod.attempt == attempt)

    def pods_with_evidence(self, attempt: int) -> tuple[Pod, ...]:
        """The pods of an attempt, and those that are gone and have told how they ended."""
        return (*self.pods_of(attempt), *(pod for pod in self.departed_pods if pod.attempt == attempt))

    @property
    def living(self) -> tuple[Pod, ...]:
        """Pods that may still write to the storage."""
        return tuple(pod for pod in (*self.foreign_pods, *self.pods) if not pod.done)


def attempt_job(tree: Object) -> AttemptJob:
    """From a batch/v1 Job of ours."""
    meta, spec, status = tree["metadata"], tree["spec"], tree.get("status") or {}
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
        together=bool(spec.get("scheduling")),
    )


def pod(tree: Object, terminating: datetime | None = None, warning: Reason | None = None) -> Pod:
    """From a pod of a gang of ours."""
    meta, spec, status = tree["metadata"], tree["spec"], tree.get("status") or {}
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
        disruption=_told(disruption) if disruption and disruption["status"] == "True" else None,
        unscheduled=_told(scheduled) if scheduled and scheduled["status"] == "False" else None,
        waiting=_told(state["waiting"]) if state.get("waiting") else None,
        ended=_told(status) if status.get("reason") else None,
        exit=_exit(state["terminated"]) if state.get("terminated") else None,
        warning=warning,
    )


def attempt_of(meta: Object) -> int:
    """The number on an object's label; 0 for one that is not ours."""
    return _number(meta.get("labels", {}).get(ATTEMPT, ""))


def time(text: str) -> datetime:
    """An instant as the API writes it."""
    return datetime.fromisoformat(text)


def owner(tree: Object, kind: str) -> str | None:
    """The uid of its owner of that kind; of several the one that controls it."""
    references: Iterable[Object] = tree["metadata"].get("ownerReferences") or ()
    found = sorted((each for each in references if each["kind"] == kind), key=lambda each: not each.get("controller"))
    return next((each["uid"] for each in found), None)


def _number(text: str) -> int:
    """0 for what is no number of ours: whoever may make pods may give them any label and annotation."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _state(status: Object) -> Object:
    found = {each["name"]: each.get("state") or {} for each in status.get("containerStatuses") or ()}
    return found.get(CONTAINER, {})


def _told(tree: Object) -> Reason:
    return Reason(tree.get("reason") or "", tree.get("message") or "")


def _exit(tree: Object) -> Exit:
    # A kubelet writes less; whoever may write the status of pods may write more.
    return Exit(tree.get("exitCode", 0), tree.get("reason") or "", (tree.get("message") or "")[-MAX_BYTES:])


def _memory(spec: Object) -> str | None:
    container: Object = next((each for each in spec["containers"] if each["name"] == CONTAINER), {})
    limit = container.get("resources", {}).get("limits", {}).get("memory")
    return None if limit is None else str(limit)
