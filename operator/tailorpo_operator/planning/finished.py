"""The job has finished: what still runs is stopped, and what is not needed any more is deleted."""

from tailorpo_operator.planning import stopping
from tailorpo_operator.planning.actions import DeleteJob, StopAttempt
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.deadline import Deadline


def proceed(builder: PlanBuilder) -> None:
    """A finished job never changes its outcome. It is deleted when its time to live is over."""
    observed = builder.observed
    builder.update_status(observed_generation=builder.job.generation)
    for attempt_job in observed.attempt_jobs:
        pods = observed.pods_of(attempt_job.attempt)
        ended = attempt_job.deleting or attempt_job.complete or attempt_job.failed
        runs = any(not pod.done for pod in pods) if pods else not ended
        if runs and not attempt_job.deleting:  # a Job that has ended stays, for the logs of its pods
            builder.delete.append(StopAttempt(attempt_job))
    stopping.force_delete_overdue(builder, observed.living)
    ttl, completion = builder.run_policy.ttl_seconds_after_finished, builder.status.completion_time
    if ttl is None or completion is None:
        return
    expiry = Deadline(completion, ttl)
    builder.requeue_unless_passed(expiry)
    # Without the job nothing would force the deletion of a pod on a lost node.
    pods_end = bool(builder.delete) or any(pod.terminating is not None for pod in observed.living)
    if expiry.passed(builder.now) and not pods_end:
        builder.delete.append(DeleteJob())


def delete_old_attempts(builder: PlanBuilder) -> None:
    """Keeps the present attempt and the one before it, for its logs."""
    newest = builder.status.attempts[-1].number if builder.status.attempts else 0
    old = [
        StopAttempt(attempt_job)
        for attempt_job in builder.observed.attempt_jobs
        if attempt_job.attempt < newest - 1 and not attempt_job.deleting
    ]
    builder.delete += [stop for stop in old if stop not in builder.delete]
