"""Why an attempt does not run yet, for people. Pure: from what the API server, scheduler and kubelets say."""

from collections.abc import Iterable

from tailorpo_operator.planning.observed import Children, Gang, Pod, Told

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


def why(seen: Children, gang: Gang | None) -> Told | None:
    """What keeps the attempt from running, as far as it is known; None while nothing is out of order."""
    if gang is None:
        return seen.refused
    if gang.suspended:
        return Told(QUEUED, "waits in its queue")
    pods = seen.of(gang.attempt)
    if len(pods) < gang.workers and seen.trouble is not None:
        return Told(refusal(seen.trouble), seen.trouble.message)
    return _first(_kubelet(pod) for pod in pods) or _first(_scheduler(pod) for pod in pods)


def untold(gang: Gang, pods: tuple[Pod, ...]) -> bool:
    """Whether events alone may tell what is wrong: a watch of gangs and pods shows all else."""
    return not gang.suspended and (stuck(pods) is not None or len(pods) < gang.workers)


def stuck(pods: Iterable[Pod]) -> Pod | None:
    """The first that has a node and does not run there yet."""
    return next((pod for pod in pods if pod.node and pod.phase == "Pending" and not pod.ready), None)


def unready(pods: tuple[Pod, ...]) -> Told:
    """Which of the pods that ran do not say any more that they do, as of a node that does not answer."""
    silent = [pod for pod in pods if not pod.ready and not pod.succeeded]
    names = ", ".join(f"{pod.name} on {pod.node}" for pod in silent[:3]) + (", …" if len(silent) > 3 else "")
    return Told("NotReady", f"{len(silent)} of {len(pods)} pods not ready: {names}")


def refusal(trouble: Told) -> str:
    """One word for what an API server said that it did not take."""
    text = trouble.message.lower()
    return next((reason for words, reason in _REFUSALS if words.lower() in text), trouble.reason or "Refused")


def _kubelet(pod: Pod) -> Told | None:
    waiting = pod.waiting
    if waiting is not None and waiting.reason not in NORMAL:
        return Told(waiting.reason, f"pod {pod.name}: {waiting.message}")
    trouble = pod.trouble
    if pod.node is not None and pod.phase == "Pending" and trouble is not None and trouble.reason not in OVERCOME:
        return Told(trouble.reason or "Trouble", f"pod {pod.name}: {trouble.message}")
    return None


def _scheduler(pod: Pod) -> Told | None:
    if pod.unscheduled is None:
        return None
    return Told(pod.unscheduled.reason or "Unschedulable", f"pod {pod.name}: {pod.unscheduled.message}")


def _first(found: Iterable[Told | None]) -> Told | None:
    return next((each for each in found if each is not None), None)
