"""The attempts of a job in its status: which is open, how one is judged, and how a job ends."""

from datetime import datetime, timedelta

from tailorpo_operator.api.conditions import ConditionState, condition, is_true
from tailorpo_operator.api.types import Attempt, Status
from tailorpo_operator.planning.backoff import PLANNED
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.end_cause import noted
from tailorpo_operator.planning.pending_reason import QUEUED
from tailorpo_trainer.spec.progress import Progress


def finished(status: Status) -> bool:
    return is_true(status, "Succeeded") or is_true(status, "Failed")


def present(status: Status) -> Attempt | None:
    """The attempt that is open."""
    return status.attempts[-1] if status.attempts and status.attempts[-1].end is None else None


def adopt(builder: PlanBuilder) -> None:
    """An attempt whose Job was made, and whoever made it did not come to say so."""
    last = builder.status.attempts[-1] if builder.status.attempts else None
    newest = max((attempt_job.attempt for attempt_job in builder.observed.attempt_jobs), default=0)
    attempt_job = builder.observed.attempt_job(newest)
    if attempt_job is None or newest <= (last.number if last else 0) or (last is not None and last.end is None):
        return
    begin(builder, newest, min(attempt_job.created, builder.now), attempt_job.workers)


def begin(builder: PlanBuilder, number: int, start: datetime, workers: int) -> None:
    """It is the present one from now on. Where it really goes on from, the trainer will say."""
    reached = builder.status.checkpoint or builder.status.progress
    attempt = Attempt(number=number, start=start, step_from=reached.step if reached else None)
    builder.update_status(
        attempts=[*builder.status.attempts, attempt], restarts=number - 1, next_attempt_time=None, resumed_from=None
    )
    builder.record_event("Normal", "AttemptStarted", f"attempt {number}: {pods(workers)}", number)


def keep_clock(builder: PlanBuilder, attempt: Attempt) -> None:
    """Since when the deadline of all attempts counts: from the first pod that ran, without time spent in a queue."""
    began, attempt_job = builder.status.start_time, builder.observed.attempt_job(attempt.number)
    if began is None:
        if any(pod.ran for pod in builder.observed.pods_of(attempt.number)):
            builder.update_status(start_time=builder.now)
        return
    queued = attempt_job is not None and attempt_job.suspended and not builder.policy.suspend
    before = condition(builder.status, "PodsReady")
    if before is not None and before.reason == QUEUED and not queued and attempt.start is not None:
        builder.update_status(start_time=min(builder.now, began + max(timedelta(), builder.now - attempt.start)))


def hear(builder: PlanBuilder, attempt: Attempt) -> bool:
    """Takes over the last words of its pods; returns whether they tell of anything to go on from."""
    before = _reached(builder)
    for told in _last_words(builder, attempt):
        builder.observe_progress(told)
    if builder.status.progress is not None:  # what ends will not be done in a while
        builder.update_status(progress=builder.status.progress.replace(eta=None, eta_seconds=None))
    return _reached(builder) != before


def note(builder: PlanBuilder, attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause and how far it came, known when the pods that told it are gone."""
    reached, resumed = builder.status.progress, builder.status.resumed_from
    return noted(attempt, cause).replace(
        step_from=resumed.step if resumed else attempt.step_from, step_to=reached.step if reached else None
    )


def judge(builder: PlanBuilder, attempt: Attempt, cause: Cause) -> None:
    """The attempt is over: what it has reached, and what follows."""
    told = _last_words(builder, attempt)
    hear(builder, attempt)
    ended = note(builder, attempt, cause).replace(end=builder.now)
    if cause.verdict is Verdict.DONE and _extended(builder, told):
        ended = ended.replace(reason="Extended", message="done, and training.iterations has grown meanwhile")
    builder.attempt(ended)
    builder.update_status(failures=builder.status.failures + (1 if ended.counted else 0), next_attempt_time=None)
    builder.conditions(
        PodsReady=ConditionState(False, ended.reason or ""), Running=ConditionState(False, ended.reason or "")
    )
    if ended.reason in PLANNED:
        builder.conditions(Restarting=ConditionState(ended.reason == "Extended", ended.reason, ended.message or ""))
    elif cause.verdict is Verdict.DONE:
        _succeed(builder, ended)
    elif cause.verdict is Verdict.FATAL:
        fail(builder, cause)
    elif ended.counted and builder.status.failures > builder.policy.backoff_limit:
        words = f"{cause.reason} in {builder.status.failures} attempts, runPolicy.backoffLimit is"
        fail(builder, cause, "BackoffLimitExceeded", f"{words} {builder.policy.backoff_limit}: {cause.message}")
    else:
        _retry(builder, ended, cause)


def fail(builder: PlanBuilder, cause: Cause, reason: str | None = None, message: str | None = None) -> None:
    """The job ends without a result."""
    reason, message = reason or cause.reason, message or cause.message
    builder.record_event("Warning", "Failed", f"{reason}: {message}", 0)
    builder.update_status(completion_time=builder.now, next_attempt_time=None)
    _over(builder, reason)
    builder.conditions(Failed=ConditionState(True, reason, message))
    builder.set_message(message, starting=False)


def _succeed(builder: PlanBuilder, ended: Attempt) -> None:
    progress = builder.status.progress
    words = f"done: {progress.steps} iterations" if progress and progress.steps else "done"
    if ended.number > 1:
        words += f" in {ended.number} attempts"
    builder.record_event("Normal", "Succeeded", words, 0)
    builder.update_status(completion_time=builder.now, next_attempt_time=None)
    _over(builder, "Succeeded")
    builder.conditions(Succeeded=ConditionState(True, "Completed", words))
    builder.set_message(words, starting=False)


def _retry(builder: PlanBuilder, ended: Attempt, cause: Cause) -> None:
    delay = builder.retries.delay(builder.status.attempts)
    builder.update_status(next_attempt_time=builder.now + delay)
    builder.record_event("Warning", cause.reason, f"attempt {ended.number} ended: {cause.message}", ended.number)
    builder.conditions(Restarting=ConditionState(True, cause.reason, cause.message))


def _over(builder: PlanBuilder, reason: str) -> None:
    builder.conditions(
        PodsReady=ConditionState(False, reason),
        Running=ConditionState(False, reason),
        Restarting=ConditionState(False, reason),
    )


def _reached(builder: PlanBuilder) -> tuple[object, ...]:
    status = builder.status
    return status.progress.step if status.progress else None, status.checkpoint, status.adapter


def pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _last_words(builder: PlanBuilder, attempt: Attempt) -> list[Progress]:
    """Those of its pods, what came farthest last; or what was told while it ran, if that is farther than is known.

    Of those that came equally far the first worker has the last word: it alone knows of checkpoints.
    """
    pods_with_evidence = sorted(
        builder.observed.pods_with_evidence(attempt.number), key=lambda pod: pod.index, reverse=True
    )
    told = [pod.exit.progress for pod in pods_with_evidence if pod.exit is not None and pod.exit.progress is not None]
    report, known = builder.observed.report, builder.status.progress
    if not told and report is not None and report.attempt == attempt.number:
        told += [report.progress] if known is None or report.progress.step > known.step else []
    return sorted(told, key=lambda each: each.step)


def _extended(builder: PlanBuilder, told: list[Progress]) -> bool:
    asked = builder.job.spec.training.iterations
    return bool(told) and told[-1].of is not None and told[-1].of < asked
