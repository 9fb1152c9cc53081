"""What to do while no attempt is open: hold, wait, or begin the next one."""

from datetime import UTC, datetime, timedelta

from tailorpo_operator.api.conditions import ConditionState, is_true, since
from tailorpo_operator.children.indexed_job import TooLarge, warnings
from tailorpo_operator.planning import attempts, end_cause, pending_reason, stopping
from tailorpo_operator.planning.actions import CreateAttempt, CreateService
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.observed import Reason

FIRST_LOOK, LAST_LOOK = 2.0, 30.0
"""Seconds between looks at what keeps pods from running: no watch tells of that."""


def between(builder: PlanBuilder) -> None:
    """No attempt is open: hold, wait, or begin the next one."""
    if builder.policy.suspend:
        _suspended(builder)
        return
    if _past_active_deadline(builder):
        return
    due = builder.status.next_attempt_time
    if due is not None and not builder.passed(due, 0):
        builder.set_message(_last_words(builder), starting=False)
        return
    if builder.observed.living:
        if not _past_start_deadline(builder):
            stopping.clear(builder)
        return
    if (builder.status.attempts or builder.observed.reused) and builder.require_fresh():
        return
    if builder.observed.refused is not None:
        _refused(builder, builder.observed.refused)
        return
    _begin(builder)


def _begin(builder: PlanBuilder) -> None:
    """The next attempt. Its objects are made before the status says so: a name that is taken by our own is no error."""
    last = builder.status.attempts[-1].number if builder.status.attempts else 0
    number, workers = last + 1, builder.job.spec.workers
    if workers > 1:  # each time, for somebody may have deleted it
        builder.create.append(CreateService())
    builder.create.append(CreateAttempt(number))
    attempts.begin(builder, number, builder.now, workers)
    words = f"attempt {number}: {attempts.pods(workers)} starting"  # as the next look will: it is worth no write
    builder.conditions(
        Suspended=ConditionState(False, "NotSuspended"),
        PodsReady=ConditionState(False, "Starting", words),
        Running=ConditionState(False, "Starting"),
    )
    builder.set_message("; ".join([words, *warnings(builder.job)]), starting=True)
    builder.requeue_with_backoff(builder.now, FIRST_LOOK, LAST_LOOK)


def _refused(builder: PlanBuilder, told: Reason) -> None:
    """The API server did not take what was to be made: a quota, an admission, a name that is another's."""
    reason = pending_reason.refusal(told)
    if reason == TooLarge.__name__:  # waiting will not help
        attempts.fail(builder, Cause(reason, told.message, Verdict.FATAL, 0))
        return
    number = builder.status.attempts[-1].number + 1 if builder.status.attempts else 1
    builder.record_event("Warning", reason, told.message, number)
    builder.conditions(PodsReady=ConditionState(False, reason, told.message))
    if _past_start_deadline(builder):
        return
    builder.set_message(told.message, starting=False)
    builder.requeue_with_backoff(_waiting_since(builder), FIRST_LOOK, LAST_LOOK)


def _suspended(builder: PlanBuilder) -> None:
    if builder.observed.living:
        stopping.clear(builder)
        return
    if not is_true(builder.status, "Suspended"):
        builder.record_event(
            "Normal", "Suspended", "holds no pods until runPolicy.suspend is false", builder.job.generation
        )
    builder.update_status(next_attempt_time=None)
    builder.conditions(
        Suspended=ConditionState(True, "Suspended", "runPolicy.suspend is true"),
        PodsReady=ConditionState(False, "Suspended"),
        Running=ConditionState(False, "Suspended"),
        Restarting=ConditionState(False, "Suspended"),
    )
    builder.set_message("holds no pods until runPolicy.suspend is false", starting=False)


def resume(builder: PlanBuilder) -> None:
    """The time in which it was suspended does not count against its deadline."""
    began, stopped = builder.status.start_time, since(builder.status, "Suspended")
    if began is not None and stopped is not None:
        builder.update_status(start_time=began + max(timedelta(), builder.now - stopped))
    builder.record_event("Normal", "Resumed", "runPolicy.suspend is false again", builder.job.generation)
    builder.conditions(Suspended=ConditionState(False, "Resumed"))


def _past_active_deadline(builder: PlanBuilder) -> bool:
    limit, began = builder.policy.active_deadline_seconds, builder.status.start_time
    if limit is None or began is None or not builder.passed(began, limit):
        return False
    attempts.fail(builder, end_cause.deadline(limit))
    return True


def _past_start_deadline(builder: PlanBuilder) -> bool:
    """While nothing can even be made; not while nobody has tried, as without an operator."""
    limit = builder.policy.start_deadline_seconds
    if limit is None or not builder.passed(_waiting_since(builder), limit):
        return False
    attempts.fail(builder, end_cause.start_deadline(limit, builder.observed.refused))
    return True


def _waiting_since(builder: PlanBuilder) -> datetime:
    """Since when the next attempt might have begun."""
    times = (builder.status.next_attempt_time, since(builder.status, "PodsReady"), since(builder.status, "Suspended"))
    return max((time for time in times if time is not None), default=builder.now)


def _last_words(builder: PlanBuilder) -> str:
    last, due = builder.status.attempts[-1:], builder.status.next_attempt_time
    ended = "".join(f"attempt {each.number} ended: {each.message or each.reason}; " for each in last)
    return f"{ended}the next begins at {due.astimezone(UTC):%H:%M:%S} UTC" if due is not None else ended
