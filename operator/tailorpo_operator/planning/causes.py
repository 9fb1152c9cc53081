"""How an attempt ended: a reason that a person understands, and whether to try again. Pure.

Each pod's end is one piece of evidence; the piece that explains the others is the attempt's (`worst`). When one pod
fails, the others are stopped, and then say so; when a node is gone, its peers miss it long before it is called lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tailorpo_operator.api.types import Attempt
from tailorpo_operator.planning.observed import Exit, Pod
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.progress import redact


class Verdict(StrEnum):
    """What follows."""

    DONE = "done"
    FATAL = "fatal"  # another attempt would end the same
    COUNTED = "counted"  # against backoffLimit
    FREE = "free"  # the cluster's doing, or a person's: tried again, and not counted
    OURS = "ours"  # we ended it: what follows is known already


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
    "DeletionByPodGC": ("NodeLost", "was lost: its node is gone"),
    "EvictionByEvictionAPI": ("Drained", "was evicted, as when a node is drained"),
    "TerminationByKubelet": ("Evicted", "was evicted: its node ran short of something, or was shut down"),
}
"""From the reason of `DisruptionTarget`."""

LOST_SIGHT = ("ContainerStatusUnknown", "Unknown")
"""Reasons with which a kubelet finds a container ended after its node was away, as after a reboot."""

SIGKILLED = 128 + 9
TERMINATED = 128 + 15

_LOWER = "lower training.microBatchSize, samplingBatchSize or decodeBatchSize, or set training.gradientCheckpointing"

# (exit code, reason, verdict), what explains the others first; None: any other code.
_EXITS = (
    (ExitCode.CONFIGURATION, "ConfigurationError", Verdict.FATAL),
    (ExitCode.BAD_DATA, "DataError", Verdict.FATAL),
    (ExitCode.NOT_FINITE, "NotFinite", Verdict.FATAL),
    (ExitCode.USAGE, "UsageError", Verdict.FATAL),
    (SIGKILLED, "Killed", Verdict.COUNTED),
    (None, "Error", Verdict.COUNTED),
    (ExitCode.OUT_OF_RESOURCES, "OutOfResources", Verdict.COUNTED),
    (ExitCode.INTERNAL, "InternalError", Verdict.COUNTED),
    (ExitCode.UNAVAILABLE, "Unavailable", Verdict.COUNTED),
    (ExitCode.STALLED, "Stalled", Verdict.COUNTED),
    (ExitCode.INTERRUPTED, "Interrupted", Verdict.COUNTED),
    (TERMINATED, "Stopped", Verdict.FREE),
    (ExitCode.STOPPED, "Stopped", Verdict.FREE),
)
_STEP = 10
_BY_CODE = {code: (_STEP * place, reason, verdict) for place, (code, reason, verdict) in enumerate(_EXITS, start=1)}

OURS, DISRUPTED, OUT_OF_MEMORY, REJECTED = 0, 1, 2, 3
GANG_DELETED = _BY_CODE[ExitCode.INTERRUPTED][0] + 1  # explains that pods were stopped, and nothing worse
VANISHED = GANG_DELETED + 1
SEEN_FIRST = _BY_CODE[ExitCode.STALLED][0] - 1  # a deletion that was seen before anything failed: its peers miss it
DONE = 1000
"""Weights beside those of exit codes."""

_REMEMBERED = {
    **{reason: (weight, verdict) for weight, reason, verdict in reversed(_BY_CODE.values())},
    **{reason: (DISRUPTED, Verdict.FREE) for reason, _ in DISRUPTIONS.values()},
    "Disrupted": (DISRUPTED, Verdict.FREE),
    "Requeued": (DISRUPTED, Verdict.FREE),
    "OOMKilled": (OUT_OF_MEMORY, Verdict.COUNTED),
    "PodDeleted": (SEEN_FIRST, Verdict.FREE),
    "JobDeleted": (SEEN_FIRST, Verdict.FREE),
    "Suspended": (OURS, Verdict.OURS),
    "DeadlineExceeded": (OURS, Verdict.FATAL),
    "StartDeadlineExceeded": (OURS, Verdict.FATAL),
    "NoProgress": (OURS, Verdict.COUNTED),
    "NotStarted": (_BY_CODE[None][0], Verdict.COUNTED),
    "Completed": (DONE, Verdict.DONE),
}
"""Weight and verdict of every reason but those that a kubelet finds for a pod that it does not take."""


def of(pod: Pod) -> Cause | None:
    """What a pod says about the end of its attempt; None if it says nothing (yet)."""
    if pod.succeeded:  # in spite of a disruption, too
        return _cause(pod, "Completed", "is done", Verdict.DONE, DONE)
    if pod.disruption is not None:
        reason, words = DISRUPTIONS.get(pod.disruption.reason, ("Disrupted", pod.disruption.message))
        return _cause(pod, reason, words, Verdict.FREE, DISRUPTED)
    if pod.phase == "Failed" or pod.exit is not None:
        return _failed(pod)
    if pod.terminating is not None:
        return _cause(pod, "PodDeleted", "was deleted", Verdict.FREE, VANISHED)
    return None


def worst(causes: Iterable[Cause]) -> Cause | None:
    """The one that explains the others: of equals the one of the lowest index."""
    return min(causes, key=lambda cause: cause.weight, default=None)


def remembered(attempt: Attempt) -> Cause | None:
    """The cause that the status holds; None while it holds none."""
    if not attempt.reason:
        return None
    weight, verdict = _REMEMBERED.get(attempt.reason, (REJECTED, Verdict.FREE))
    if attempt.counted is False and verdict in (Verdict.COUNTED, Verdict.FATAL):
        weight, verdict = REJECTED, Verdict.FREE  # a kubelet's reason that reads like one of ours
    message = attempt.message or ""
    return Cause(attempt.reason, message, verdict, weight, attempt.exit_code, attempt.rank, attempt.node)


def gang_deleted() -> Cause:
    """By hand, or by somebody's clean-up."""
    return Cause("JobDeleted", "the attempt's Job was deleted", Verdict.FREE, GANG_DELETED)


def completed() -> Cause:
    """Every pod has succeeded, by the word of the Job controller."""
    return Cause("Completed", "all pods are done", Verdict.DONE, DONE)


def requeued() -> Cause:
    """A queue suspends a gang that runs, to give its place to another."""
    return Cause("Requeued", "its queue has taken back its place", Verdict.FREE, DISRUPTED)


def vanished(index: int) -> Cause:
    """A pod is gone, and nobody has seen how."""
    return Cause("PodDeleted", f"the pod of worker {index} was deleted", Verdict.FREE, VANISHED)


def lost(pod: Pod) -> Cause:
    """A pod that does not end though it was asked to."""
    words = f"does not confirm its deletion after {pod.grace:.0f} s of grace: its node is taken for lost"
    return _cause(pod, "NodeLost", words, Verdict.FREE, DISRUPTED)


def _failed(pod: Pod) -> Cause:
    end = pod.exit
    if end is None or end.reason in LOST_SIGHT:
        if pod.ended is not None:  # the kubelet refused or evicted it
            return _cause(pod, pod.ended.reason or "Rejected", pod.ended.message, Verdict.FREE, REJECTED)
        if pod.terminating is not None:  # before its container ran, as by the Job controller when another has failed
            return _cause(pod, "PodDeleted", "was deleted", Verdict.FREE, VANISHED)
        if pod.waiting is not None:  # a container that somebody put before ours
            words = f"failed before its container began ({pod.waiting.reason})"
            return _cause(pod, "NotStarted", words, Verdict.COUNTED, _BY_CODE[None][0])
        return _cause(pod, "NodeLost", "was lost: its node lost sight of it, as in a reboot", Verdict.FREE, DISRUPTED)
    if end.reason == "OOMKilled":
        limit = f"its limit of {pod.memory}" if pod.memory else "the memory of its node"
        words = f"was killed for its memory ({limit}): raise template.resources.limits.memory, or {_LOWER}"
        return _cause(pod, "OOMKilled", words, Verdict.COUNTED, OUT_OF_MEMORY)
    if end.code == SIGKILLED and pod.terminating is not None:
        words = "did not stop within its grace period and was killed"
        return _cause(pod, "Stopped", words, Verdict.FREE, _BY_CODE[ExitCode.STOPPED][0])
    weight, reason, verdict = _BY_CODE.get(end.code, _BY_CODE[None])
    return _cause(pod, reason, _words(end), verdict, weight)


def _words(end: Exit) -> str:
    last = end.progress
    if last is not None and last.error is not None:
        return last.error.text
    if last is not None:  # the message of a process that was killed
        return f"ended with exit code {end.code} after step {last.step}"
    tail = redact(end.text.strip())[-200:]
    return f"ended with exit code {end.code}" + (f": {tail}" if tail else "")


def _cause(pod: Pod, reason: str, words: str, verdict: Verdict, weight: int) -> Cause:
    error = pod.exit.progress.error if pod.exit and pod.exit.progress else None
    said = error is not None and words == error.text
    return Cause(
        reason,
        words if said else f"pod {pod.name} {words}" if words else f"pod {pod.name} failed",
        verdict,
        weight,
        pod.exit.code if pod.exit else None,
        error.rank if error is not None and error.rank is not None and 0 <= error.rank < 2**31 else pod.index,
        pod.node,
    )
