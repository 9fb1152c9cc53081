"""How an attempt ended: a reason that a person understands, and whether to try again. Pure.

Each pod's end is one piece of evidence; the one that explains the others is the attempt's (`decisive`).
When one pod fails, the others are stopped, and end so; when a node is lost, its peers notice it long before Kubernetes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tailorpo_operator.api.types import Attempt
from tailorpo_operator.planning.observed import Exit, Pod
from tailorpo_trainer.errors import (
    END_CAUSES,
    OTHER_CODE,
    SIGKILLED,
    EndCause,
    ExitCode,
    describe_exit,
    end_cause,
)
from tailorpo_trainer.errors import Verdict as Verdict
from tailorpo_trainer.spec.progress import redact


@dataclass(frozen=True)
class Cause:
    """Why an attempt ended. weight: of several causes the one of the least weight explains the others."""

    reason: str
    message: str
    verdict: Verdict
    weight: int
    exit_code: int | None = None
    rank: int | None = None
    node: str | None = None


DISRUPTIONS = {
    "PreemptionByScheduler": ("Preempted", "made way for pods of a higher priority"),
    "DeletionByTaintManager": ("NodeLost", "was lost: its node does not answer, or was tainted"),
    "DeletionByPodGC": ("NodeLost", "was lost: its node was deleted"),
    "EvictionByEvictionAPI": ("Drained", "was evicted, as when a node is drained"),
    "TerminationByKubelet": ("Evicted", "was evicted: its node ran short of something, or was shut down"),
}
"""From the reason of `DisruptionTarget`."""

STATUS_UNKNOWN = ("ContainerStatusUnknown", "Unknown")
"""Reasons that a kubelet gives for a container that ended while its node was away, as in a reboot."""

_LOWER = "lower training.microBatchSize, samplingBatchSize or decodeBatchSize, or set training.gradientCheckpointing"
_STEP = 10


def _weight(end: EndCause) -> int:
    """The weights of exit codes leave room for others before and after each."""
    return _STEP * (END_CAUSES.index(end) + 1)


BY_OPERATOR, DISRUPTED, OUT_OF_MEMORY, REJECTED = 0, 1, 2, 3
JOB_DELETED = _weight(end_cause(ExitCode.INTERRUPTED)) + 1  # explains why pods were stopped, and no failure
POD_MISSING = JOB_DELETED + 1
OBSERVED_FIRST = _weight(end_cause(ExitCode.STALLED)) - 1  # deleted before anything failed: the peers then end with 74
STOPPED = _weight(end_cause(ExitCode.STOPPED))
DONE = _weight(end_cause(ExitCode.DONE))
UNFINISHED = _weight(end_cause(ExitCode.INTERNAL))
"""Weights besides those of exit codes."""


@dataclass(frozen=True)
class EndReason:
    """A reason of `status.attempts`. meaning, what_to_do: for `docs/operator.md`."""

    reason: str
    weight: int
    verdict: Verdict
    meaning: str
    what_to_do: str = ""


_MORE_MEMORY = "raise `template.resources.limits.memory`, or lower what it needs as for `OutOfResources`"
REASONS = (
    EndReason("Extended", DONE, Verdict.DONE, "the same, and `training.iterations` has grown: goes on at once"),
    EndReason(
        "SpecChanged",
        BY_OPERATOR,
        Verdict.FREE,
        "the job was edited before all its pods ran, and the edit changes what they are made of: begins anew at once",
    ),
    EndReason("Suspended", BY_OPERATOR, Verdict.SUSPENDED, "`runPolicy.suspend`", "set it to false"),
    EndReason(
        "DeadlineExceeded",
        BY_OPERATOR,
        Verdict.FATAL,
        "`runPolicy.activeDeadlineSeconds`",
        "apply it again with a longer one: it goes on from its storage",
    ),
    EndReason(
        "StartDeadlineExceeded",
        BY_OPERATOR,
        Verdict.FATAL,
        "`runPolicy.startDeadlineSeconds`",
        "find out what kept the pods from running",
    ),
    EndReason(
        "NoProgress",
        BY_OPERATOR,
        Verdict.COUNTED,
        "`/progress` answers, and its step stood still for twice `stallTimeoutSeconds`",
        "read the logs; set a longer timeout for slow models",
    ),
    EndReason("Preempted", DISRUPTED, Verdict.FREE, "pods of a higher priority took the place"),
    EndReason("Drained", DISRUPTED, Verdict.FREE, "an eviction, as by `kubectl drain`"),
    EndReason(
        "Evicted",
        DISRUPTED,
        Verdict.FREE,
        "the node ran short of memory or disk, or was shut down",
        "set requests as high as what is used",
    ),
    EndReason(
        "NodeLost",
        DISRUPTED,
        Verdict.FREE,
        "the node does not answer, is deleted or has rebooted; or a pod does not confirm its deletion in time",
    ),
    EndReason("Requeued", DISRUPTED, Verdict.FREE, "the queue took the place back"),
    EndReason("Disrupted", DISRUPTED, Verdict.FREE, "any other disruption that Kubernetes names"),
    EndReason("OOMKilled", OUT_OF_MEMORY, Verdict.COUNTED, "beyond the container's memory limit", _MORE_MEMORY),
    EndReason(
        "OutOfcpu", REJECTED, Verdict.FREE, "the node did not take the pod, for this or another reason of its own"
    ),
    EndReason(
        "Unfinished",
        UNFINISHED,
        Verdict.COUNTED,
        "0, and by its termination message the first worker had iterations left",
        "read the logs: most likely a reward or a library ends the process",
    ),
    EndReason("NotStarted", _weight(OTHER_CODE), Verdict.COUNTED, "a container that was put before ours failed"),
    EndReason("PodDeleted", OBSERVED_FIRST, Verdict.FREE, "by hand or by a clean-up, before any pod had failed"),
    EndReason("JobDeleted", OBSERVED_FIRST, Verdict.FREE, "the same, of the attempt's Job"),
    *(EndReason(end.reason, _weight(end), end.verdict, end.meaning, end.what_to_do) for end in END_CAUSES),
)
_BY_REASON = {each.reason: each for each in reversed(REASONS)}
"""The first row of each reason: the one with the least weight."""


def of_pod(pod: Pod) -> Cause | None:
    """The cause that a pod shows for the end of its attempt; None if it shows none (yet)."""
    if pod.succeeded and pod.index == 0 and (left := _iterations_left(pod)):
        return _cause(pod, "Unfinished", f"ended with exit code 0 {left}", Verdict.COUNTED, UNFINISHED)
    if pod.succeeded:  # in spite of a disruption, too
        return _cause(pod, "Completed", "is done", Verdict.DONE, DONE)
    if pod.disruption is not None:
        reason, message = DISRUPTIONS.get(pod.disruption.reason, ("Disrupted", pod.disruption.message))
        return _cause(pod, reason, message, Verdict.FREE, DISRUPTED)
    if pod.phase == "Failed" or pod.exit is not None:
        return _failed(pod)
    if pod.terminating is not None:
        return _cause(pod, "PodDeleted", "was deleted", Verdict.FREE, POD_MISSING)
    return None


def decisive(causes: Iterable[Cause]) -> Cause | None:
    """The cause that explains the others: the first of those with the least weight."""
    return min(causes, key=lambda cause: cause.weight, default=None)


def recorded(attempt: Attempt) -> Cause | None:
    """The cause that the status holds; None while it holds none."""
    if not attempt.reason:
        return None
    known = _BY_REASON.get(attempt.reason)
    weight, verdict = (known.weight, known.verdict) if known is not None else (REJECTED, Verdict.FREE)
    if attempt.counted is False and verdict in (Verdict.COUNTED, Verdict.FATAL):
        weight, verdict = REJECTED, Verdict.FREE  # a kubelet's reason that reads like one of ours
    message = attempt.message or ""
    return Cause(attempt.reason, message, verdict, weight, attempt.exit_code, attempt.rank, attempt.node)


def job_deleted() -> Cause:
    """Deleted by hand, or by a clean-up that is not ours."""
    return Cause("JobDeleted", "the attempt's Job was deleted", Verdict.FREE, JOB_DELETED)


def completed() -> Cause:
    """Every pod has succeeded, according to the Job controller."""
    return Cause("Completed", "all pods are done", Verdict.DONE, DONE)


def requeued() -> Cause:
    """A queue suspends a gang that runs, to give its place to another."""
    return Cause("Requeued", "its queue has taken back its place", Verdict.FREE, DISRUPTED)


def pod_missing(index: int) -> Cause:
    """A pod does not exist any more, and how it ended was not observed."""
    return Cause("PodDeleted", f"the pod of worker {index} was deleted", Verdict.FREE, POD_MISSING)


def node_lost(pod: Pod) -> Cause:
    """A pod that does not end though it was asked to."""
    message = f"does not confirm its deletion after {pod.grace:.0f} s of grace: its node is taken for lost"
    return _cause(pod, "NodeLost", message, Verdict.FREE, DISRUPTED)


def _iterations_left(pod: Pod) -> str:
    """What a termination message says was left to do; nothing where there is none."""
    last = pod.exit.progress if pod.exit is not None else None
    if last is None or last.of is None or last.step >= last.of:
        return ""
    return f"after step {last.step} of {last.of}, before the run was done"


def _failed(pod: Pod) -> Cause:
    end = pod.exit
    if end is None or end.reason in STATUS_UNKNOWN:
        if pod.ended is not None:  # the kubelet refused or evicted it
            return _cause(pod, pod.ended.reason or "Rejected", pod.ended.message, Verdict.FREE, REJECTED)
        if pod.terminating is not None:  # before its container ran, as by the Job controller when another has failed
            return _cause(pod, "PodDeleted", "was deleted", Verdict.FREE, POD_MISSING)
        if pod.waiting is not None:  # on an init container that is not ours
            message = f"failed before its container began ({pod.waiting.reason})"
            return _cause(pod, "NotStarted", message, Verdict.COUNTED, _weight(OTHER_CODE))
        return _cause(
            pod, "NodeLost", "was lost: its node does not know how it ended, as after a reboot", Verdict.FREE, DISRUPTED
        )
    if end.reason == "OOMKilled":
        limit = f"its limit of {pod.memory}" if pod.memory else "the memory of its node"
        message = f"was killed for its memory ({limit}): raise template.resources.limits.memory, or {_LOWER}"
        return _cause(pod, "OOMKilled", message, Verdict.COUNTED, OUT_OF_MEMORY)
    if end.code == SIGKILLED and pod.terminating is not None:
        return _cause(pod, "Stopped", "did not stop within its grace period and was killed", Verdict.FREE, STOPPED)
    known = end_cause(end.code)
    return _cause(pod, known.reason, _exit_message(end), known.verdict, _weight(known))


def _exit_message(end: Exit) -> str:
    last = end.progress
    if last is not None and last.error is not None:
        return last.error.text
    if last is not None:  # the process was killed: its message has no error
        return f"{describe_exit(end.code)} after step {last.step}"
    tail = redact(end.text.strip())[-200:]
    return describe_exit(end.code) + (f": {tail}" if tail else "")


def _cause(pod: Pod, reason: str, message: str, verdict: Verdict, weight: int) -> Cause:
    error = pod.exit.progress.error if pod.exit and pod.exit.progress else None
    from_trainer = error is not None and message == error.text
    return Cause(
        reason,
        message if from_trainer else f"pod {pod.name} {message}" if message else f"pod {pod.name} failed",
        verdict,
        weight,
        pod.exit.code if pod.exit else None,
        error.rank if error is not None and error.rank is not None and 0 <= error.rank < 2**31 else pod.index,
        pod.node,
    )
