"""What to do about a job: from what it asks for, what there is of it, and the time. Pure, and total.

Made from what is, never from what happened: planning twice changes nothing, and whoever plans may be killed between
any two of the plan's steps. One attempt is one gang of pods, which lives and dies together:

    begin -> going -> ending (`attempts[-1].reason` is set) -> judged (`end` is set) -> begin the next, or finished

An attempt is ending at the first pod that has failed, goes, or is gone; it is judged once, when no pod of it can run
any more, from all evidence together; before that no other begins.
"""

from datetime import datetime

from tailorpo_operator.api.conditions import ConditionState, is_true
from tailorpo_operator.api.types import Attempt, Job
from tailorpo_operator.children.indexed_job import wants_gang, warnings
from tailorpo_operator.planning import attempts, end_cause, pending_reason, stopping
from tailorpo_operator.planning.actions import DeleteJob, DeletePod, Plan, StopAttempt
from tailorpo_operator.planning.backoff import AS_KUBERNETES, Retries
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict, decisive, node_lost
from tailorpo_operator.planning.next_attempt import FIRST_LOOK, LAST_LOOK, between, resume
from tailorpo_operator.planning.observed import Observed

ONE_BY_ONE = "placed one by one, for this cluster schedules no gangs"


def plan(job: Job, seen: Observed, now: datetime, retries: Retries = AS_KUBERNETES) -> Plan:
    """What should exist, what should go, what the user should read, and when to look again."""
    builder = PlanBuilder(job, seen, now, retries)
    if job.deleting:
        return builder.plan()  # owner references see to its children
    if not attempts.finished(builder.status):
        _open(builder)
    if attempts.finished(builder.status):
        _finished(builder)
    _forget_old(builder)
    return builder.plan()


def _open(builder: PlanBuilder) -> None:
    """The job has not ended yet."""
    attempts.adopt(builder)
    if is_true(builder.status, "Suspended") and not builder.policy.suspend:
        resume(builder)
    present = attempts.present(builder.status)
    if present is not None:
        attempts.keep_clock(builder, present)
        cause = end_cause.why(builder, present)
        if cause is None:
            _going(builder, present)
            return
        if not _ended(builder, present, cause):
            return
    if not attempts.finished(builder.status):
        between(builder)


def _finished(builder: PlanBuilder) -> None:
    """Terminal stays terminal: what still runs is stopped, and the job goes when its time to live is over."""
    builder.update_status(observed_generation=builder.job.generation)
    for attempt_job in builder.observed.attempt_jobs:
        pods, over = (
            builder.observed.pods_of(attempt_job.attempt),
            attempt_job.deleting or attempt_job.complete or attempt_job.failed,
        )
        if any(not pod.done for pod in pods) if pods else not over:  # what has ended stays, for its log
            builder.delete += [] if attempt_job.deleting else [StopAttempt(attempt_job)]
    stopping.force(builder, builder.observed.living)
    ttl, end = builder.policy.ttl_seconds_after_finished, builder.status.completion_time
    going = bool(builder.delete) or any(pod.terminating is not None for pod in builder.observed.living)
    if ttl is not None and end is not None and builder.passed(end, ttl) and not going:  # else nobody would force them
        builder.delete.append(DeleteJob())


def _forget_old(builder: PlanBuilder) -> None:
    """The attempt before the present one stays, for its log."""
    newest = builder.status.attempts[-1].number if builder.status.attempts else 0
    old = [
        StopAttempt(attempt_job)
        for attempt_job in builder.observed.attempt_jobs
        if attempt_job.attempt < newest - 1 and not attempt_job.deleting
    ]
    builder.delete += [stop for stop in old if stop not in builder.delete]


def _going(builder: PlanBuilder, attempt: Attempt) -> None:
    """The attempt waits for its pods, or runs."""
    attempt_job = builder.observed.attempt_job(attempt.number)
    assert attempt_job is not None, "an attempt without a gang is ending"
    pods = builder.observed.pods_of(attempt.number)
    ready = end_cause.ready(attempt_job, pods)
    ran = is_true(builder.status, "Running")
    words = f"attempt {attempt.number}: {attempts.pods(attempt_job.workers)}" + (
        " running" if ready or ran else " starting"
    )
    if ready and not ran:
        builder.record_event("Normal", "Running", words, attempt.number)
    told = None if ready else pending_reason.unready(pods) if ran else pending_reason.why(builder.observed, attempt_job)
    if told is not None:
        words = f"{words}, {told.message}" if ran else told.message
        if not ran and told.reason != pending_reason.QUEUED:
            builder.record_event("Warning", told.reason, told.message, attempt.number)
    builder.conditions(
        Suspended=ConditionState(False, "NotSuspended"),
        PodsReady=ConditionState(
            ready, "PodsReady" if ready else told.reason if told else "Starting", "" if ready else words
        ),
        Running=ConditionState(ready or ran, "Running" if ready or ran else "Starting"),
    )
    if ready or ran:
        builder.conditions(Restarting=ConditionState(False, "Running"))
    alone = [ONE_BY_ONE] if not ran and told and not attempt_job.together and wants_gang(builder.job) else []
    builder.set_message("; ".join([words, *alone, *warnings(builder.job)]), starting=told is None)
    if builder.observed.report is not None and builder.observed.report.attempt == attempt.number:
        builder.observe_progress(builder.observed.report.progress)
    stopping.force(builder, builder.observed.living)  # a Job that was deleted may have made one more pod
    if not ready and not ran and pending_reason.untold(attempt_job, pods):
        builder.requeue_with_backoff(attempt.start, FIRST_LOOK, LAST_LOOK)


def _ended(builder: PlanBuilder, attempt: Attempt, cause: Cause) -> bool:
    """The attempt is to end: stop what runs. Once nothing can run any more it is judged; returns whether it was."""
    attempt_job, pods = builder.observed.attempt_job(attempt.number), builder.observed.pods_of(attempt.number)
    living = [pod for pod in pods if not pod.done]
    if cause.verdict is not Verdict.DONE:
        cause = decisive([cause, *map(node_lost, stopping.overdue(builder, living))]) or cause
    stop = stopping.must_stop(attempt_job, pods, cause)
    news = attempts.hear(builder, attempt)
    if news and not builder.observed.fresh and any(pod.terminating is not None for pod in pods):
        builder.requeue_with_backoff(
            builder.now, 0, 0
        )  # it is written down first: such a pod may be gone at the next look
    elif not stop and not living:
        if builder.require_fresh():
            return False
        attempts.judge(builder, attempt, cause)
        return True
    builder.attempt(attempts.note(builder, attempt, cause))
    builder.conditions(PodsReady=ConditionState(False, cause.reason, cause.message))
    if cause.verdict in (Verdict.FREE, Verdict.COUNTED):
        builder.conditions(
            Running=ConditionState(False, cause.reason, cause.message),
            Restarting=ConditionState(True, cause.reason, cause.message),
        )
    builder.set_message(f"attempt {attempt.number} is ending: {cause.message}", starting=True)
    if attempt_job is not None and (stop or stopping.keeps_forced(attempt_job, living)):
        builder.delete.append(StopAttempt(attempt_job))
    if attempt_job is None:  # as the garbage collector will; it leaves those that were orphaned by a wish
        builder.delete += [DeletePod(pod) for pod in living if pod.terminating is None]
    else:
        stopping.hurry(builder, [pod for pod in living if cause.verdict is Verdict.DONE or pod.exit is not None])
    stopping.force(builder, living)
    return False
