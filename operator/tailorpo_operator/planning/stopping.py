"""Which pods and Jobs are stopped, and which pods are deleted by force."""

from collections.abc import Iterable
from datetime import datetime

from tailorpo_operator.api.conditions import since
from tailorpo_operator.planning.actions import DeletePod, StopAttempt
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.deadline import Deadline
from tailorpo_operator.planning.observed import AttemptJob, Pod


def runs_on(attempt_job: AttemptJob | None, pods: tuple[Pod, ...]) -> bool:
    """Whether the gang runs on until its Job is deleted. After a failed pod the Job controller stops the others."""
    if attempt_job is None or attempt_job.deleting or attempt_job.complete or attempt_job.failed:
        return False
    return not any(pod.phase == "Failed" or (pod.exit is not None and not pod.succeeded) for pod in pods)


def holds_force_deleted(attempt_job: AttemptJob, living: list[Pod]) -> bool:
    """Whether a pod that was deleted by force before it had failed remains, because of the Job controller's finalizer.

    The controller removes the finalizer only when the Job ends.
    """
    ended = attempt_job.deleting or attempt_job.complete or attempt_job.failed
    return not ended and any(pod.forced for pod in living)


def overdue(pods: Iterable[Pod], now: datetime, retries: Retries) -> list[Pod]:
    """Those whose deletion should have been confirmed long ago."""
    return [pod for pod in pods if (limit := _confirmation(pod, retries)) is not None and limit.passed(now)]


def force_delete_overdue(builder: PlanBuilder, pods: Iterable[Pod]) -> None:
    """Deletes by force what a lost node never confirms.

    A trainer that runs on there does no harm: each attempt writes below a prefix of its own.
    """
    living = [pod for pod in pods if not pod.done]
    for pod in living:
        if (limit := _confirmation(pod, builder.retries)) is not None:
            builder.requeue_unless_passed(limit)
    builder.delete += [DeletePod(pod, force=True) for pod in overdue(living, builder.now, builder.retries)]


def delete_after_grace(builder: PlanBuilder, living: list[Pod]) -> None:
    """Deletes pods that outlive the result, or their own trainer, by more than the grace period."""
    staying = [pod for pod in living if pod.terminating is None]
    if not staying:
        return
    limit = Deadline(
        since(builder.status, "PodsReady") or builder.now, builder.run_policy.termination_grace_period_seconds
    )
    builder.requeue_unless_passed(limit)
    if limit.passed(builder.now):
        builder.delete += [DeletePod(pod) for pod in staying]


def stop_leftovers(builder: PlanBuilder) -> None:
    """Stops pods that may still write before the next attempt begins, and waits for those of another owner."""
    living = builder.observed.living
    force_delete_overdue(builder, living)
    for pod in builder.observed.pods:
        if not pod.done and pod.terminating is None:
            attempt_job = builder.observed.attempt_job(pod.attempt)
            stop = DeletePod(pod) if attempt_job is None else StopAttempt(attempt_job)
            if stop not in builder.delete and (attempt_job is None or not attempt_job.deleting):
                builder.delete.append(stop)
    names = ", ".join(pod.name for pod in living[:3]) + (", …" if len(living) > 3 else "")
    builder.set_message(f"waits until {names} have ended", starting=True)


def _confirmation(pod: Pod, retries: Retries) -> Deadline | None:
    """When the pod's deletion should be confirmed at the latest; None while nobody has deleted it."""
    return None if pod.terminating is None else Deadline(pod.terminating, pod.grace + retries.lost)
