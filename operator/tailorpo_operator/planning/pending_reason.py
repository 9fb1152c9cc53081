"""Why an attempt does not run yet, for people. Pure: from what the API server, scheduler and kubelets say."""

from collections.abc import Iterable

from tailorpo_operator.planning.observed import AttemptJob, Observed, Pod, Reason

QUEUED = "Queued"
NORMAL = ("", "ContainerCreating", "PodInitializing")
"""Reasons with which a container waits that are none to worry about."""
OVERCOME = ("FailedScheduling",)
"""Reasons of events that do not hold any more once a pod has a node."""

_REFUSALS = (
    ("exceeded quota", "QuotaExceeded"),
    ("strict decoding error", "Invalid"),
    ("violates PodSecurity", "PodSecurity"),
    ("looking up service account", "ServiceAccountNotFound"),
    ("no PriorityClass", "PriorityClassNotFound"),
    ("pod rejected: RuntimeClass", "RuntimeClassNotFound"),
)
"""Words by which a refusal to make pods is told, and our reason for it."""


def why(seen: Observed, attempt_job: AttemptJob | None) -> Reason | None:
    """What keeps the attempt from running, as far as it is known; None while nothing is out of order."""
    if attempt_job is None:
        return seen.refused
    if attempt_job.suspended:
        return Reason(QUEUED, "waits in its queue")
    pods = seen.pods_of(attempt_job.attempt)
    if len(pods) < attempt_job.workers and seen.warning is not None:
        return Reason(refusal(seen.warning), seen.warning.message)
    return _first(_kubelet(pod) for pod in pods) or _first(_scheduler(pod) for pod in pods)


def untold(attempt_job: AttemptJob, pods: tuple[Pod, ...]) -> bool:
    """Whether events alone may tell what is wrong: a watch of gangs and pods shows all else."""
    return not attempt_job.suspended and (stuck(pods) is not None or len(pods) < attempt_job.workers)


def stuck(pods: Iterable[Pod]) -> Pod | None:
    """The first that has a node and does not run there yet."""
    return next((pod for pod in pods if pod.node and pod.phase == "Pending" and not pod.ready), None)


def unready(pods: tuple[Pod, ...]) -> Reason:
    """Which of the pods that ran do not say any more that they do, as of a node that does not answer."""
    silent = [pod for pod in pods if not pod.ready and not pod.succeeded]
    names = ", ".join(f"{pod.name} on {pod.node}" for pod in silent[:3]) + (", …" if len(silent) > 3 else "")
    return Reason("NotReady", f"{len(silent)} of {len(pods)} pods not ready: {names}")


def refusal(warning: Reason) -> str:
    """One word for what an API server said that it did not take."""
    text = warning.message.lower()
    return next((reason for words, reason in _REFUSALS if words.lower() in text), warning.reason or "Refused")


def _kubelet(pod: Pod) -> Reason | None:
    waiting = pod.waiting
    if waiting is not None and waiting.reason not in NORMAL:
        return Reason(waiting.reason, f"pod {pod.name}: {waiting.message}")
    warning = pod.warning
    if pod.node is not None and pod.phase == "Pending" and warning is not None and warning.reason not in OVERCOME:
        return Reason(warning.reason or "Trouble", f"pod {pod.name}: {warning.message}")
    return None


def _scheduler(pod: Pod) -> Reason | None:
    if pod.unscheduled is None:
        return None
    return Reason(pod.unscheduled.reason or "Unschedulable", f"pod {pod.name}: {pod.unscheduled.message}")


def _first(found: Iterable[Reason | None]) -> Reason | None:
    return next((each for each in found if each is not None), None)
