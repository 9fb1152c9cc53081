"""What to do about a job: a pure, total function of the job, what was observed of it, and the time.

A plan depends on what exists, never on what happened before: planning twice changes nothing, and the operator may be
killed between any two steps of a plan. One attempt is one gang of pods, which start and end together:

    begin -> running -> ending (`attempts[-1].reason` is set) -> judged (`end` is set) -> next or finished

An attempt is ending as soon as one of its pods has failed, is being deleted, or is missing. It is judged once, from
the evidence of all pods, when none of them can run any more; no other attempt begins before that.

Each phase has one module: `next_attempt`, `running`, `ending`, `finished`. This one chooses among them.
"""

from datetime import datetime

from tailorpo_operator.api.conditions import is_true
from tailorpo_operator.api.types import Job
from tailorpo_operator.planning import attempts, end_cause, ending, finished, next_attempt, running
from tailorpo_operator.planning.actions import Plan
from tailorpo_operator.planning.backoff import AS_KUBERNETES, Retries
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.observed import Observed


def plan(job: Job, observed: Observed, now: datetime, retries: Retries = AS_KUBERNETES) -> Plan:
    """What to create and delete, the new status with its events, and when to reconcile again."""
    builder = PlanBuilder(job, observed, now, retries)
    if job.deleting:
        return builder.plan()  # the garbage collector deletes its children, by their owner references
    if not attempts.finished(builder.status):
        _advance(builder)
    if attempts.finished(builder.status):
        finished.proceed(builder)
    finished.delete_old_attempts(builder)
    return builder.plan()


def _advance(builder: PlanBuilder) -> None:
    """Takes a job that has not finished through the phases of an attempt, as far as it can go now."""
    attempts.adopt(builder)
    if is_true(builder.status, "Suspended") and not builder.run_policy.suspend:
        next_attempt.resume(builder)
    attempt = attempts.present(builder.status)
    if attempt is not None:
        attempts.keep_clock(builder, attempt)
        decision = end_cause.why(builder.job, builder.status, builder.observed, builder.now, attempt)
        builder.requeue_at(decision.due)
        if decision.needs_fresh and not builder.observed.fresh:
            builder.request_fresh_read()
            return
        if decision.cause is None:
            running.proceed(builder, attempt)
            return
        if not ending.proceed(builder, attempt, decision.cause):
            return
    if not attempts.finished(builder.status):
        next_attempt.proceed(builder)
