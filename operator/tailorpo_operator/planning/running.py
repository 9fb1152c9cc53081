"""The attempt waits for its pods, or runs."""

from tailorpo_operator.api.conditions import ConditionState, is_true, since
from tailorpo_operator.api.types import Attempt
from tailorpo_operator.children.indexed_job import wants_gang, warnings
from tailorpo_operator.planning import attempts, pending_reason, stopping
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.end_cause import outdated
from tailorpo_operator.planning.observed import all_ready
from tailorpo_operator.planning.pending_reason import FIRST_CHECK, LAST_CHECK, QUEUED

EDITED = "an edit of the job waits for the next attempt"
NOT_QUEUED = "did not wait in its queue, for no queue has held it: is Kueue installed, and does it manage Jobs here?"
ONE_BY_ONE = "placed one by one, for this cluster schedules no gangs"


def proceed(builder: PlanBuilder, attempt: Attempt) -> None:
    """Reports readiness, progress, and what keeps the pods from running."""
    observed, attempt_job = builder.observed, builder.observed.attempt_job(attempt.number)
    assert attempt_job is not None, "an attempt without its Job is ending"
    pods = observed.pods_of(attempt.number)
    ready, ran = all_ready(attempt_job, pods), is_true(builder.status, "Running")
    message = f"attempt {attempt.number}: {attempts.pods(attempt_job.workers)}" + (
        " running" if ready or ran else " starting"
    )
    problem = None
    if not ready:
        problem = pending_reason.not_ready(pods) if ran else pending_reason.why(observed, attempt_job)

    if ready and not ran:
        builder.record_event("Normal", "Running", message, attempt.number)
    if problem is not None and not ran and problem.reason != QUEUED:
        builder.record_event("Warning", problem.reason, problem.message, attempt.number)
    if problem is not None:
        message = f"{message}, {problem.message}" if ran else problem.message

    reason = "PodsReady" if ready else problem.reason if problem else "Starting"
    builder.set_conditions(
        Suspended=ConditionState(False, "NotSuspended"),
        PodsReady=ConditionState(ready, reason, "" if ready else message),
        Running=ConditionState(ready or ran, "Running" if ready or ran else "Starting"),
    )
    if ready or ran:
        builder.set_conditions(Restarting=ConditionState(False, "Running"))
        if attempt.ready is None:
            builder.update_attempt(attempt.replace(ready=since(builder.status, "Running")))
    one_by_one = not ran and problem is not None and not attempt_job.gang_scheduled and wants_gang(builder.job)
    # Before the pods have run, `end_cause` has compared already, and an edit would have ended the attempt.
    waits = [EDITED] if ran and outdated(builder.job, attempt_job) else []
    waits += [observed.unknown.message] if observed.unknown is not None else []
    if attempt_job.passed_over:
        waits.append(NOT_QUEUED)
        builder.record_event("Warning", "NotQueued", NOT_QUEUED, attempt.number)
    messages = [message, *([ONE_BY_ONE] if one_by_one else []), *waits, *warnings(builder.job)]
    builder.set_message("; ".join(messages), starting=problem is None)

    if observed.report is not None and observed.report.attempt == attempt.number:
        builder.observe_progress(observed.report.progress)
    # The controller of a deleted Job may have created one more pod.
    stopping.force_delete_overdue(builder, observed.living)
    if not ready and not ran and pending_reason.needs_events(attempt_job, pods):
        builder.requeue_with_backoff(attempt.start, FIRST_CHECK, LAST_CHECK)
