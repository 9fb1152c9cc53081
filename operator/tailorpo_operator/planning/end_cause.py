"""Whether the open attempt must end, and why. Pure: the caller acts on the decision."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tailorpo_operator.api.conditions import ORDINARY, condition, is_true
from tailorpo_operator.api.types import Attempt, Job, Status
from tailorpo_operator.children.indexed_job import is_outdated
from tailorpo_operator.planning.causes import (
    BY_OPERATOR,
    JOB_DELETED,
    POD_MISSING,
    REJECTED,
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
from tailorpo_operator.planning.deadline import Deadline, earliest
from tailorpo_operator.planning.observed import AttemptJob, Observed, Pod, Reason, all_ready
from tailorpo_operator.planning.pending_reason import why as why_pending
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.job import RunPolicy

STALLS = 2
"""The operator waits so many times `stallTimeoutSeconds` for a step: the trainer's own watchdog acts first."""
POLLED = 30.0
"""Seconds after which a trainer that can be reached has been polled again."""


@dataclass(frozen=True)
class Decision:
    """Whether the attempt must end.

    Attributes:
        cause: why it must end, the cause that explains all others; None while it continues.
        due: when the answer changes although nothing happens; None if it never does.
        needs_fresh: the cause is that something is missing, which a cache that lags behind may not show yet.
    """

    cause: Cause | None = None
    due: datetime | None = None
    needs_fresh: bool = False


def why(job: Job, status: Status, observed: Observed, now: datetime, attempt: Attempt) -> Decision:
    """Decides from the pods' evidence, the deadlines, and what is missing. status: the job's, as planned so far."""
    attempt_job, pods = observed.attempt_job(attempt.number), observed.pods_of(attempt.number)
    pods_with_evidence, known = observed.pods_with_evidence(attempt.number), recorded(attempt)
    leader = next((pod for pod in pods_with_evidence if pod.index == 0 and pod.succeeded), None)
    if leader is not None:  # its result counts, even if other pods have failed
        return Decision(of_pod(leader))
    if known is not None and known.verdict in (Verdict.DONE, Verdict.SUSPENDED):
        return Decision(known)
    if attempt_job is not None and attempt_job.complete:
        return Decision(completed())
    found = list(_from_pods(attempt_job, pods_with_evidence))
    requested = Decision()
    if known is None and not any(cause.verdict in (Verdict.COUNTED, Verdict.FATAL) for cause in found):
        requested = _requested(job.spec.run_policy, status, observed, now, attempt)
        if requested.cause is not None:
            return requested
        if attempt_job is not None and not is_true(status, "Running") and outdated(job, attempt_job):
            return Decision(_ours("SpecChanged", "the job was edited before all its pods ran", Verdict.FREE))
    # Of equal weights the missing pod comes first, because the Job controller deletes the others after it.
    found = [*([known] if known is not None else []), *_missing(status, attempt_job, pods, known), *found]
    cause = decisive(found)
    # The cache may not show everything yet; and the Job controller deletes pods, too, after one has failed.
    needs_fresh = cause is not None and known is None and cause.weight in (JOB_DELETED, POD_MISSING)
    if cause is not None and cause is known:
        cause = _with_exit(cause, pods_with_evidence)
    if cause is not None and cause is not known and cause.exit_code == ExitCode.STALLED:
        cause = _of_a_part(cause, status, observed, attempt_job, pods_with_evidence)
    return Decision(cause, requested.due, needs_fresh)


def outdated(job: Job, attempt_job: AttemptJob) -> bool:
    """Whether an edit waits for the next attempt."""
    return is_outdated(job, attempt_job.generation, attempt_job.template_hash)


def _of_a_part(
    stalled: Cause, status: Status, observed: Observed, attempt_job: AttemptJob | None, pods: tuple[Pod, ...]
) -> Cause:
    """The cause of a gang that never had all its workers: what kept the others away, and no fault of those that ran.

    Those wait for the others until `rendezvousTimeoutSeconds` has passed, and then end as if they had lost a peer.
    """
    workers = attempt_job.workers if attempt_job is not None else 0
    if is_true(status, "Running") or len({pod.index for pod in pods if pod.ran}) >= workers:
        return stalled
    ready = condition(status, "PodsReady")
    kept_away = why_pending(observed, attempt_job) or (
        Reason(ready.reason, ready.message) if ready is not None and ready.reason not in ORDINARY else None
    )
    if kept_away is None:
        return stalled
    message = f"only some of its {workers} pods ever ran: {kept_away.message}"
    return replace(stalled, reason=kept_away.reason, message=message, verdict=Verdict.FREE, weight=REJECTED)


def noted(attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause, as the status holds it."""
    return attempt.replace(
        reason=cause.reason,
        message=cause.message,
        counted=cause.verdict in (Verdict.COUNTED, Verdict.FATAL),
        exit_code=cause.exit_code if cause.exit_code is not None and 0 <= cause.exit_code <= 255 else None,
        rank=cause.rank,
        node=cause.node,
    )


def active_deadline_exceeded(seconds: int) -> Cause:
    return _ours("DeadlineExceeded", f"runPolicy.activeDeadlineSeconds: {seconds} s have passed", Verdict.FATAL)


def start_deadline_exceeded(seconds: int, reason: Reason | None) -> Cause:
    """reason: what has kept the pods from running, if it is known."""
    message = f"runPolicy.startDeadlineSeconds: not all pods run after {seconds} s"
    message += f": {reason.message}" if reason and reason.message else ""
    return _ours("StartDeadlineExceeded", message, Verdict.FATAL)


def _from_pods(attempt_job: AttemptJob | None, pods: tuple[Pod, ...]) -> Iterator[Cause]:
    """The causes that pods report, except success."""
    queued = attempt_job is not None and attempt_job.suspended
    if queued and any(pod.ran for pod in pods):
        yield requeued()
    for pod in pods:
        cause = of_pod(pod)
        # A queue may delete pods that never ran, and create them again.
        if cause is not None and cause.verdict is not Verdict.DONE and (pod.ran or not queued):
            yield cause


def _with_exit(known: Cause, pods: tuple[Pod, ...]) -> Cause:
    """The cause with the exit code of its pod: a pod that is deleted, as in a drain, is a cause before it has ended."""
    if known.exit_code is not None:
        return known
    exits = (pod.exit for pod in pods if (pod.index, pod.node) == (known.rank, known.node) and pod.exit is not None)
    end = next((each for each in exits if each.reason not in STATUS_UNKNOWN), None)
    return known if end is None else replace(known, exit_code=end.code)


def _requested(run_policy: RunPolicy, status: Status, observed: Observed, now: datetime, attempt: Attempt) -> Decision:
    """Whether the job itself asks for the end: by suspension, a deadline, or a stall."""
    if run_policy.suspend:
        return Decision(_ours("Suspended", "runPolicy.suspend is true", Verdict.SUSPENDED))
    due: datetime | None = None
    for decision in _limits(run_policy, status, observed, now, attempt):
        due = earliest(due, decision.due)
        if decision.cause is not None:
            return Decision(decision.cause, due)
    return Decision(due=due)


def _limits(
    run_policy: RunPolicy, status: Status, observed: Observed, now: datetime, attempt: Attempt
) -> Iterator[Decision]:
    """What each limit of the run policy decides; the first that has passed counts."""
    attempt_job = observed.attempt_job(attempt.number)
    if attempt_job is None or attempt_job.suspended:  # no limit counts while the job waits in a queue
        return
    limit, began = run_policy.active_deadline_seconds, status.start_time
    if limit is not None and began is not None:
        yield _at(Deadline(began, limit), now, active_deadline_exceeded(limit))
    limit = run_policy.start_deadline_seconds
    # A queue that releases a gang does not start it: the Job controller does, and sets the start time.
    started, pods = attempt_job.started, observed.pods_of(attempt.number)
    if (
        limit is not None
        and started is not None
        and not is_true(status, "Running")
        and not all_ready(attempt_job, pods)
    ):
        cause = start_deadline_exceeded(limit, why_pending(observed, attempt_job))
        yield _at(Deadline(max(attempt.start or started, started), limit), now, cause)
    yield _stall(run_policy, observed, now, attempt)


def _at(deadline: Deadline, now: datetime, cause: Cause) -> Decision:
    return Decision(cause) if deadline.passed(now) else Decision(due=deadline.due)


def _stall(run_policy: RunPolicy, observed: Observed, now: datetime, attempt: Attempt) -> Decision:
    report = observed.report
    if report is None or report.attempt != attempt.number or report.progress.phase != "Running":
        return Decision()
    deadline = Deadline(report.advanced_at, STALLS * run_policy.stall_timeout_seconds)
    if not deadline.passed(now):
        return Decision(due=deadline.due)
    if not deadline.passed(report.received_at):  # it could not be reached since, so nobody knows whether it advances
        return Decision(due=now + timedelta(seconds=POLLED))
    message = f"no step for {timedelta(seconds=deadline.seconds)}, though the trainer answers"
    message += f": stopped at step {report.progress.step}"
    return Decision(Cause("NoProgress", message, Verdict.COUNTED, BY_OPERATOR))


def _missing(
    status: Status, attempt_job: AttemptJob | None, pods: tuple[Pod, ...], known: Cause | None
) -> Iterator[Cause]:
    """Objects of the attempt that existed and are missing."""
    if attempt_job is None or attempt_job.deleting:
        if known is None:  # with a known cause the operator has deleted it
            yield job_deleted()
        return
    old = {pod.index for pod in pods if pod.phase != "Pending"}
    if is_true(status, "Running"):
        # Missing or replaced: a gang with a new member cannot continue.
        yield from (pod_missing(index) for index in range(attempt_job.workers) if index not in old)
    elif attempt_job.failed and len(old) < attempt_job.workers:
        # Failed pods are kept: this one was deleted, by a drain or by hand, while no operator ran.
        yield pod_missing(min(set(range(attempt_job.workers)) - old))


def _ours(reason: str, message: str, verdict: Verdict) -> Cause:
    return Cause(reason, message, verdict, BY_OPERATOR)
