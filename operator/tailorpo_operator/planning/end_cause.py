"""Whether the present attempt is to end, and why."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from tailorpo_operator.api.conditions import is_true
from tailorpo_operator.api.types import Attempt
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import (
    BY_OPERATOR,
    JOB_DELETED,
    POD_MISSING,
    STATUS_UNKNOWN,
    Cause,
    Verdict,
    completed,
    decisive,
    job_deleted,
    of_pod,
    pod_missing,
    recorded,
    requeued,
)
from tailorpo_operator.planning.observed import AttemptJob, Pod, Reason
from tailorpo_operator.planning.pending_reason import why as why_waiting

STALLS = 2
"""Times `stallTimeoutSeconds` without a step: the trainer's own watchdog comes first."""
ASKED = 30.0
"""Seconds in which a trainer that can be reached has been asked again."""


def why(builder: PlanBuilder, attempt: Attempt) -> Cause | None:
    """The cause that explains the others; None while the attempt goes on."""
    attempt_job, pods = builder.observed.attempt_job(attempt.number), builder.observed.pods_of(attempt.number)
    pods_with_evidence, known = builder.observed.pods_with_evidence(attempt.number), recorded(attempt)
    leader = next((pod for pod in pods_with_evidence if pod.index == 0 and pod.succeeded), None)
    if leader is not None:  # what it has written is the result, whatever the others say
        return of_pod(leader)
    if known is not None and known.verdict in (Verdict.DONE, Verdict.SUSPENDED):
        return known
    if attempt_job is not None and attempt_job.complete:
        return completed()
    found = list(_told(attempt_job, pods_with_evidence))
    own = any(cause.verdict in (Verdict.COUNTED, Verdict.FATAL) for cause in found)
    if known is None and not own and (asked := _asked(builder, attempt, attempt_job, pods)) is not None:
        return asked
    # Of equal weight what is gone: the Job controller deletes the others after it.
    found = [*([known] if known is not None else []), *_missing(builder, attempt_job, pods, known), *found]
    cause = decisive(found)
    if cause is not None and known is None and cause.weight in (JOB_DELETED, POD_MISSING):
        # What is not there may not have been seen yet; and the Job controller deletes pods too, when one has failed.
        builder.require_fresh()
    return _with_exit(known, pods_with_evidence) if known is not None and cause is known else cause


def noted(attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause."""
    return attempt.replace(
        reason=cause.reason,
        message=cause.message,
        counted=cause.verdict in (Verdict.COUNTED, Verdict.FATAL),
        exit_code=cause.exit_code if cause.exit_code is not None and 0 <= cause.exit_code <= 255 else None,
        rank=cause.rank,
        node=cause.node,
    )


def deadline(seconds: int) -> Cause:
    return _ours("DeadlineExceeded", f"runPolicy.activeDeadlineSeconds: {seconds} s have passed", Verdict.FATAL)


def start_deadline(seconds: int, told: Reason | None) -> Cause:
    words = f"runPolicy.startDeadlineSeconds: not all pods run after {seconds} s"
    return _ours("StartDeadlineExceeded", f"{words}: {told.message}" if told and told.message else words, Verdict.FATAL)


def ready(attempt_job: AttemptJob, pods: tuple[Pod, ...]) -> bool:
    """Whether all workers run, or are done already."""
    return len(pods) == attempt_job.workers and all(pod.ready or pod.succeeded for pod in pods)


def _told(attempt_job: AttemptJob | None, pods: tuple[Pod, ...]) -> Iterator[Cause]:
    """What pods say, but that they are done."""
    queued = attempt_job is not None and attempt_job.suspended
    if queued and any(pod.ran for pod in pods):
        yield requeued()
    for pod in pods:
        cause = of_pod(pod)
        # A queue may take back pods that never ran, and make them again.
        if cause is not None and cause.verdict is not Verdict.DONE and (pod.ran or not queued):
            yield cause


def _with_exit(known: Cause, pods: tuple[Pod, ...]) -> Cause:
    """A pod that goes, as at a drain, is a cause before it has ended."""
    if known.exit_code is not None:
        return known
    exits = (pod.exit for pod in pods if (pod.index, pod.node) == (known.rank, known.node) and pod.exit is not None)
    end = next((each for each in exits if each.reason not in STATUS_UNKNOWN), None)
    return known if end is None else replace(known, exit_code=end.code)


def _asked(
    builder: PlanBuilder, attempt: Attempt, attempt_job: AttemptJob | None, pods: tuple[Pod, ...]
) -> Cause | None:
    """An end that the job itself asks for."""
    policy, status = builder.policy, builder.status
    if policy.suspend:
        return _ours("Suspended", "runPolicy.suspend is true", Verdict.SUSPENDED)
    limit, began = policy.active_deadline_seconds, status.start_time
    if attempt_job is None or attempt_job.suspended:  # no deadline passes in a queue
        return None
    if limit is not None and began is not None and builder.passed(began, limit):
        return deadline(limit)
    limit = policy.start_deadline_seconds
    # A queue that lets a gang go does not start it: the Job controller does, and says when.
    if limit is not None and attempt_job.started is not None and not is_true(status, "Running"):
        begun = max(attempt.start or attempt_job.started, attempt_job.started)
        if not ready(attempt_job, pods) and builder.passed(begun, limit):
            return start_deadline(limit, why_waiting(builder.observed, attempt_job))
    return _stalled(builder, attempt)


def _stalled(builder: PlanBuilder, attempt: Attempt) -> Cause | None:
    report = builder.observed.report
    if report is None or report.attempt != attempt.number or report.progress.phase != "Running":
        return None
    limit = STALLS * builder.policy.stall_timeout_seconds
    if not builder.passed(report.moved, limit):
        return None
    if (report.told - report.moved).total_seconds() < limit:  # out of reach since: nobody knows
        builder.requeue_with_backoff(builder.now, ASKED, ASKED)
        return None
    words = f"no step for {timedelta(seconds=limit)}, though the trainer answers"
    return Cause("NoProgress", f"{words}: stopped at step {report.progress.step}", Verdict.COUNTED, BY_OPERATOR)


def _missing(
    builder: PlanBuilder, attempt_job: AttemptJob | None, pods: tuple[Pod, ...], known: Cause | None
) -> Iterator[Cause]:
    """What was there and is gone."""
    if attempt_job is None or attempt_job.deleting:
        if known is None:  # else we have deleted it ourselves
            yield job_deleted()
        return
    old = {pod.index for pod in pods if pod.phase != "Pending"}
    if is_true(builder.status, "Running"):
        # Gone, or replaced: a gang with a new member cannot go on.
        yield from (pod_missing(index) for index in range(attempt_job.workers) if index not in old)
    elif attempt_job.failed and len(old) < attempt_job.workers:
        # Pods that fail stay: this one was deleted, by a drain or by hand, while nobody looked.
        yield pod_missing(min(set(range(attempt_job.workers)) - old))


def _ours(reason: str, message: str, verdict: Verdict) -> Cause:
    return Cause(reason, message, verdict, BY_OPERATOR)
