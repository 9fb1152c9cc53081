"""Why an attempt does not run yet, for users. Pure: from what the API server, scheduler and kubelets report."""

from collections.abc import Iterable

from tailorpo_operator.planning.observed import AttemptJob, Observed, Pod, Reason

QUEUED = "Queued"
FIRST_CHECK, LAST_CHECK = 2.0, 30.0
"""Bounds in seconds of the time between two checks of what only events report, which are not watched."""
NORMAL = ("", "ContainerCreating", "PodInitializing")
"""Reasons for which a container waits in a normal start."""
OVERCOME = ("FailedScheduling",)
"""Reasons of events that no longer hold once a pod has a node."""

INVALID = "Invalid"
"""What the API server refuses as it is, whatever else is in the cluster: only an edit of the job helps."""
REFUSALS = (
    # A policy or a webhook may say anything, so they come first.
    ("validatingadmissionpolicy '", "PolicyDenied"),
    ("admission webhook", "WebhookDenied"),
    ("calling webhook", "WebhookUnavailable"),
    ("exceeded quota", "QuotaExceeded"),
    ("insufficient quota", "QuotaExceeded"),
    ("failed quota", "QuotaNeedsResources"),
    (" usage per ", "LimitRange"),
    ("limit to request ratio per ", "LimitRange"),
    ("violates podsecurity", "PodSecurity"),
    ("any security context constraint", "SecurityContextConstraint"),
    ("looking up service account", "ServiceAccountNotFound"),
    ("no priorityclass", "PriorityClassNotFound"),
    ("pod rejected: runtimeclass", "RuntimeClassNotFound"),
    ("is being terminated", "NamespaceTerminating"),
    ('is forbidden: user "', "Forbidden"),
    ("strict decoding error", INVALID),
    (" cannot be handled as a ", INVALID),
    ("request entity too large", INVALID),
    (" is invalid: ", INVALID),
)
"""A part of the message with which the API server refuses to create a Job or pods, in lower case, and the reason that a
user reads. The first that fits counts. `docs/operator.md` explains each."""


def why(observed: Observed, attempt_job: AttemptJob | None) -> Reason | None:
    """What keeps the attempt from running, as far as it is known; None while its start is normal."""
    if attempt_job is None:
        return observed.refused
    if attempt_job.suspended:
        return Reason(QUEUED, "waits in its queue")
    pods = observed.pods_of(attempt_job.attempt)
    if len(pods) < attempt_job.workers and observed.warning is not None:
        return Reason(refusal(observed.warning), observed.warning.message)
    return _first(_kubelet(pod) for pod in pods) or _first(_scheduler(pod) for pod in pods)


def needs_events(attempt_job: AttemptJob, pods: tuple[Pod, ...]) -> bool:
    """Whether only events may report the problem: Jobs and pods, which are watched, report all others."""
    return not attempt_job.suspended and (stuck(pods) is not None or len(pods) < attempt_job.workers)


def stuck(pods: Iterable[Pod]) -> Pod | None:
    """The first pod that has a node and does not run there yet."""
    return next((pod for pod in pods if pod.node and pod.phase == "Pending" and not pod.ready), None)


def not_ready(pods: tuple[Pod, ...]) -> Reason:
    """Which of the pods that ran are not ready any more, as on a node that does not answer."""
    found = [pod for pod in pods if not pod.ready and not pod.succeeded]
    names = ", ".join(f"{pod.name} on {pod.node}" for pod in found[:3]) + (", …" if len(found) > 3 else "")
    return Reason("NotReady", f"{len(found)} of {len(pods)} pods not ready: {names}")


def refusal(warning: Reason) -> str:
    """The reason, in one CamelCase word, for which the API server refused an object."""
    text = warning.message.lower()
    return next((reason for part, reason in REFUSALS if part in text), warning.reason or "Refused")


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
