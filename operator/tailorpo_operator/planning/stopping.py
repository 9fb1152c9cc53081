"""What is stopped, and what is deleted by force."""

from tailorpo_operator.api.conditions import since
from tailorpo_operator.planning.actions import DeletePod, StopAttempt
from tailorpo_operator.planning.builder import Draft
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.observed import Gang, Pod


def must_stop(gang: Gang | None, pods: tuple[Pod, ...], cause: Cause) -> bool:
    """Whether the gang runs on unless we stop it: at a failed pod the Job controller stops the others itself."""
    if gang is None or gang.deleting or gang.complete or gang.failed or cause.verdict is Verdict.DONE:
        return False
    return not any(pod.phase == "Failed" or (pod.exit is not None and not pod.succeeded) for pod in pods)


def keeps_forced(gang: Gang, living: list[Pod]) -> bool:
    """Whether a Job lets no pod go that was forced before it had failed: Kubernetes' controller does, till its end."""
    return not (gang.deleting or gang.complete or gang.failed) and any(pod.forced for pod in living)


def hurry(draft: Draft, living: list[Pod]) -> None:
    """The first worker is done, so the run is; or a trainer is, but not its pod: they may take as long as a stop."""
    begun = since(draft.status, "PodsReady") or draft.now
    grace = draft.policy.termination_grace_period_seconds
    staying = [pod for pod in living if pod.terminating is None]
    if staying and draft.passed(begun, grace):
        draft.delete += [DeletePod(pod) for pod in staying]


def overdue(draft: Draft, pods: list[Pod]) -> list[Pod]:
    """Those that should have confirmed their deletion long ago."""
    return [
        pod
        for pod in pods
        if pod.terminating is not None and draft.passed(pod.terminating, pod.grace + draft.retries.lost)
    ]


def force(draft: Draft, pods: tuple[Pod, ...] | list[Pod]) -> None:
    """A lost node never confirms. A writer that runs on there spoils nothing: each attempt has a prefix of its own."""
    draft.delete += [DeletePod(pod, force=True) for pod in overdue(draft, [pod for pod in pods if not pod.done])]


def clear(draft: Draft) -> None:
    """Pods that may still write end before others begin. Another's are not ours to stop."""
    force(draft, draft.seen.living)
    for pod in draft.seen.pods:
        if not pod.done and pod.terminating is None:
            gang = draft.seen.gang(pod.attempt)
            stop = DeletePod(pod) if gang is None else StopAttempt(gang)
            draft.delete += [] if stop in draft.delete or (gang is not None and gang.deleting) else [stop]
    names = [pod.name for pod in draft.seen.living]
    draft.say(f"waits until {', '.join(names[:3])}{', …' if len(names) > 3 else ''} have ended", starting=True)
