"""What is stopped, and what is deleted by force."""

from tailorpo_operator.api.conditions import since
from tailorpo_operator.planning.actions import DeletePod, StopAttempt
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.observed import AttemptJob, Pod


def must_stop(attempt_job: AttemptJob | None, pods: tuple[Pod, ...], cause: Cause) -> bool:
    """Whether the gang runs on unless we stop it: at a failed pod the Job controller stops the others itself."""
    if (
        attempt_job is None
        or attempt_job.deleting
        or attempt_job.complete
        or attempt_job.failed
        or cause.verdict is Verdict.DONE
    ):
        return False
    return not any(pod.phase == "Failed" or (pod.exit is not None and not pod.succeeded) for pod in pods)


def keeps_forced(attempt_job: AttemptJob, living: list[Pod]) -> bool:
    """Whether a Job lets no pod go that was forced before it had failed: Kubernetes' controller does, till its end."""
    return not (attempt_job.deleting or attempt_job.complete or attempt_job.failed) and any(
        pod.forced for pod in living
    )


def hurry(builder: PlanBuilder, living: list[Pod]) -> None:
    """The first worker is done, so the run is; or a trainer is, but not its pod: they may take as long as a stop."""
    begun = since(builder.status, "PodsReady") or builder.now
    grace = builder.policy.termination_grace_period_seconds
    staying = [pod for pod in living if pod.terminating is None]
    if staying and builder.passed(begun, grace):
        builder.delete += [DeletePod(pod) for pod in staying]


def overdue(builder: PlanBuilder, pods: list[Pod]) -> list[Pod]:
    """Those that should have confirmed their deletion long ago."""
    return [
        pod
        for pod in pods
        if pod.terminating is not None and builder.passed(pod.terminating, pod.grace + builder.retries.lost)
    ]


def force(builder: PlanBuilder, pods: tuple[Pod, ...] | list[Pod]) -> None:
    """A lost node never confirms. A writer that runs on there spoils nothing: each attempt has a prefix of its own."""
    builder.delete += [DeletePod(pod, force=True) for pod in overdue(builder, [pod for pod in pods if not pod.done])]


def clear(builder: PlanBuilder) -> None:
    """Pods that may still write end before others begin. Another's are not ours to stop."""
    force(builder, builder.observed.living)
    for pod in builder.observed.pods:
        if not pod.done and pod.terminating is None:
            attempt_job = builder.observed.attempt_job(pod.attempt)
            stop = DeletePod(pod) if attempt_job is None else StopAttempt(attempt_job)
            builder.delete += (
                [] if stop in builder.delete or (attempt_job is not None and attempt_job.deleting) else [stop]
            )
    names = [pod.name for pod in builder.observed.living]
    builder.set_message(
        f"waits until {', '.join(names[:3])}{', …' if len(names) > 3 else ''} have ended", starting=True
    )
