"""The attempts in a job's status: which one is open, and how one begins."""

from datetime import datetime, timedelta

from tailorpo_operator.api.conditions import condition, is_true
from tailorpo_operator.api.types import Attempt, Status
from tailorpo_operator.children.accelerators import accelerators
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.pending_reason import QUEUED


def finished(status: Status) -> bool:
    return is_true(status, "Succeeded") or is_true(status, "Failed")


def present(status: Status) -> Attempt | None:
    """The attempt that is open."""
    return status.attempts[-1] if status.attempts and status.attempts[-1].end is None else None


def adopt(builder: PlanBuilder) -> None:
    """Begins an attempt whose Job exists although the status does not hold it: its creator was killed in between."""
    last = builder.status.attempts[-1] if builder.status.attempts else None
    newest = max((attempt_job.attempt for attempt_job in builder.observed.attempt_jobs), default=0)
    attempt_job = builder.observed.attempt_job(newest)
    if attempt_job is None or newest <= (last.number if last else 0) or (last is not None and last.end is None):
        return
    begin(builder, newest, min(attempt_job.created, builder.now), attempt_job.workers)


def begin(builder: PlanBuilder, number: int, start: datetime, workers: int) -> None:
    """Opens an attempt. Its first step is an estimate until the trainer reports which checkpoint it resumed from."""
    reached = builder.status.checkpoint or builder.status.progress
    attempt = Attempt(
        number=number,
        start=start,
        accelerators=accelerators(builder.job.spec) or None,
        step_from=reached.step if reached else None,
    )
    builder.update_status(
        attempts=[*builder.status.attempts, attempt], restarts=number - 1, next_attempt_time=None, resumed_from=None
    )
    builder.record_event("Normal", "AttemptStarted", f"attempt {number}: {pods(workers)}", number)


def keep_clock(builder: PlanBuilder, attempt: Attempt) -> None:
    """Sets the start of `activeDeadlineSeconds`: when the first pod ran, moved by the time spent in a queue."""
    began, attempt_job = builder.status.start_time, builder.observed.attempt_job(attempt.number)
    if began is None:
        if any(pod.ran for pod in builder.observed.pods_of(attempt.number)):
            builder.update_status(start_time=builder.now)
        return
    queued = attempt_job is not None and attempt_job.suspended and not builder.run_policy.suspend
    before = condition(builder.status, "PodsReady")
    if before is not None and before.reason == QUEUED and not queued and attempt.start is not None:
        builder.update_status(start_time=min(builder.now, began + max(timedelta(), builder.now - attempt.start)))


def pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"
