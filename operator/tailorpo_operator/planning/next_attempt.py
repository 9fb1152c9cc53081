"""No attempt is open: the job is suspended, waits, or begins the next attempt."""

from datetime import UTC, datetime, timedelta

from tailorpo_operator.api.conditions import ConditionState, is_true, since
from tailorpo_operator.api.types import Status
from tailorpo_operator.children.indexed_job import TooLarge, warnings
from tailorpo_operator.planning import attempts, end_cause, ending, pending_reason, stopping
from tailorpo_operator.planning.actions import CreateAttempt, CreateService
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.deadline import Deadline
from tailorpo_operator.planning.observed import Reason
from tailorpo_operator.planning.pending_reason import FIRST_CHECK, INVALID, LAST_CHECK

SUSPENDED = "holds no pods until runPolicy.suspend is false"


def proceed(builder: PlanBuilder) -> None:
    """Suspends the job, waits for whatever must come first, or begins the next attempt."""
    observed = builder.observed
    if builder.run_policy.suspend:
        _suspend(builder)
        return
    limit, began = builder.run_policy.active_deadline_seconds, builder.status.start_time
    if limit is not None and began is not None:
        deadline = Deadline(began, limit)
        builder.requeue_unless_passed(deadline)
        if deadline.passed(builder.now):
            ending.fail(builder, end_cause.active_deadline_exceeded(limit))
            return
    due = builder.status.next_attempt_time
    if due is not None and builder.now < due:
        builder.requeue_at(due)
        builder.set_message(_waiting_message(builder.status, due), starting=False)
        return
    if observed.living:
        if not _fail_at_start_deadline(builder):
            stopping.stop_leftovers(builder)
        return
    if (builder.status.attempts or observed.reused) and not observed.fresh:
        builder.request_fresh_read()
        return
    if (kept := observed.unknown or observed.refused) is not None:
        _handle_refusal(builder, kept)
        return
    _begin(builder)


def resume(builder: PlanBuilder) -> None:
    """Ends the suspension. The time that the job was suspended does not count against its deadline."""
    began, suspended = builder.status.start_time, since(builder.status, "Suspended")
    if began is not None and suspended is not None:
        builder.update_status(start_time=began + max(timedelta(), builder.now - suspended))
    builder.record_event("Normal", "Resumed", "runPolicy.suspend is false again", builder.job.generation)
    builder.clear_conditions("Resumed", "Suspended")


def _begin(builder: PlanBuilder) -> None:
    """Begins the next attempt. Its objects are created before the status is written: creating them again is allowed."""
    last = builder.status.attempts[-1].number if builder.status.attempts else 0
    number, workers = last + 1, builder.job.spec.workers
    if workers > 1:  # for each attempt, because a user may have deleted it
        builder.create.append(CreateService())
    builder.create.append(CreateAttempt(number))
    attempts.begin(builder, number, builder.now, workers)
    # The next reconcile finds the same message, so that it need not write the status.
    message = f"attempt {number}: {attempts.pods(workers)} starting"
    builder.clear_conditions("NotSuspended", "Suspended")
    builder.clear_conditions("Starting", "PodsReady", message=message)
    builder.clear_conditions("Starting", "Running")
    builder.set_message("; ".join([message, *warnings(builder.job)]), starting=True)
    builder.requeue_with_backoff(builder.now, FIRST_CHECK, LAST_CHECK)


def _handle_refusal(builder: PlanBuilder, refused: Reason) -> None:
    """The API server refused to create an object: because of a quota, an admission webhook, or a name in use."""
    reason = pending_reason.refusal(refused)
    if reason == TooLarge.__name__:  # trying again will not help
        ending.fail(builder, Cause(reason, refused.message, Verdict.FATAL, 0))
        return
    number = builder.status.attempts[-1].number + 1 if builder.status.attempts else 1
    builder.record_event("Warning", reason, refused.message, number)
    builder.clear_conditions(reason, "PodsReady", message=refused.message)
    if _fail_at_start_deadline(builder):
        return
    if reason == INVALID:  # the reconciler asks again only for another Job
        builder.set_message(f"correct the job, for Kubernetes refuses its pods: {refused.message}", starting=False)
        return
    builder.set_message(refused.message, starting=False)
    builder.requeue_with_backoff(_waiting_since(builder.status, builder.now), FIRST_CHECK, LAST_CHECK)


def _suspend(builder: PlanBuilder) -> None:
    if builder.observed.living:
        stopping.stop_leftovers(builder)
        return
    if not is_true(builder.status, "Suspended"):
        builder.record_event("Normal", "Suspended", SUSPENDED, builder.job.generation)
    builder.update_status(next_attempt_time=None)
    builder.set_conditions(Suspended=ConditionState(True, "Suspended", "runPolicy.suspend is true"))
    builder.clear_conditions("Suspended", "PodsReady", "Running", "Restarting")
    builder.set_message(SUSPENDED, starting=False)


def _fail_at_start_deadline(builder: PlanBuilder) -> bool:
    """Fails the job if nothing could be created until its start deadline, and requeues it for then otherwise.

    The time in which no operator tried does not count. Returns whether the job has failed.
    """
    limit = builder.run_policy.start_deadline_seconds
    if limit is None:
        return False
    deadline = Deadline(_waiting_since(builder.status, builder.now), limit)
    builder.requeue_unless_passed(deadline)
    if not deadline.passed(builder.now):
        return False
    kept = builder.observed.unknown or builder.observed.refused
    ending.fail(builder, end_cause.start_deadline_exceeded(limit, kept))
    return True


def _waiting_since(status: Status, now: datetime) -> datetime:
    """Since when the next attempt might have begun."""
    times = (status.next_attempt_time, since(status, "PodsReady"), since(status, "Suspended"))
    return max((time for time in times if time is not None), default=now)


def _waiting_message(status: Status, due: datetime) -> str:
    last = status.attempts[-1:]
    ended = "".join(f"attempt {attempt.number} ended: {attempt.message or attempt.reason}; " for attempt in last)
    return f"{ended}the next begins at {due.astimezone(UTC):%H:%M:%S} UTC"
