"""The attempt is ending: its pods are stopped, and once none can run any more it is judged."""

from tailorpo_operator.api.conditions import ConditionState
from tailorpo_operator.api.types import MAX_TOTAL, Attempt, Status
from tailorpo_operator.planning import stopping
from tailorpo_operator.planning.actions import DeletePod, StopAttempt
from tailorpo_operator.planning.backoff import PLANNED
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_operator.planning.causes import Cause, Verdict, decisive, node_lost
from tailorpo_operator.planning.end_cause import noted
from tailorpo_operator.planning.observed import Observed
from tailorpo_trainer.spec.progress import Progress


def proceed(builder: PlanBuilder, attempt: Attempt, cause: Cause) -> bool:
    """Stops what still runs, and judges the attempt when nothing can run any more. Returns whether it was judged."""
    observed, done = builder.observed, cause.verdict is Verdict.DONE
    attempt_job, pods = observed.attempt_job(attempt.number), observed.pods_of(attempt.number)
    living = [pod for pod in pods if not pod.done]
    if not done:
        overdue = stopping.overdue(living, builder.now, builder.retries)
        cause = decisive([cause, *map(node_lost, overdue)]) or cause
    stop = not done and stopping.runs_on(attempt_job, pods)

    reached = _reached(builder.status)
    _record_last_words(builder, attempt, done=done)
    if _reached(builder.status) != reached and not observed.fresh and any(pod.terminating is not None for pod in pods):
        # The status is written before the attempt is judged: such a pod may be missing at the next reconcile.
        builder.requeue_at(builder.now)
    elif not stop and not living:
        if not observed.fresh:
            builder.request_fresh_read()
            return False
        _judge(builder, attempt, cause)
        return True

    builder.update_attempt(_with_cause(builder.status, attempt, cause))
    builder.clear_conditions(cause.reason, "PodsReady", message=cause.message)
    if cause.verdict in (Verdict.FREE, Verdict.COUNTED):
        builder.clear_conditions(cause.reason, "Running", message=cause.message)
        builder.set_conditions(Restarting=ConditionState(True, cause.reason, cause.message))
    builder.set_message(f"attempt {attempt.number} is ending: {cause.message}", starting=True)

    if attempt_job is not None and (stop or stopping.holds_force_deleted(attempt_job, living)):
        builder.delete.append(StopAttempt(attempt_job))
    if attempt_job is None:  # the garbage collector deletes these, too, but no pods that were orphaned on purpose
        builder.delete += [DeletePod(pod) for pod in living if pod.terminating is None]
    else:
        stopping.delete_after_grace(builder, [pod for pod in living if done or pod.exit is not None])
    stopping.force_delete_overdue(builder, living)
    return False


def fail(builder: PlanBuilder, cause: Cause, reason: str | None = None, message: str | None = None) -> None:
    """The job ends without a result."""
    reason, message = reason or cause.reason, message or cause.message
    builder.record_event("Warning", "Failed", f"{reason}: {message}", 0)
    _complete(builder, reason)
    builder.set_conditions(Failed=ConditionState(True, reason, message))
    builder.set_message(message, starting=False)


def last_words(observed: Observed, status: Status, attempt: Attempt) -> list[Progress]:
    """The progress in the termination messages of the attempt's pods, ordered by step.

    Of equal steps the first worker's comes last, because it alone knows of checkpoints. Without any such message it is
    what the attempt last reported while it ran, if that is further than what the status holds.
    """
    pods = sorted(observed.pods_with_evidence(attempt.number), key=lambda pod: pod.index, reverse=True)
    found = [pod.exit.progress for pod in pods if pod.exit is not None and pod.exit.progress is not None]
    report, known = observed.report, status.progress
    if not found and report is not None and report.attempt == attempt.number:
        found += [report.progress] if known is None or report.progress.step > known.step else []
    return sorted(found, key=lambda progress: progress.step)


def _record_last_words(builder: PlanBuilder, attempt: Attempt, *, done: bool) -> None:
    for progress in last_words(builder.observed, builder.status, attempt):
        # Whatever a pod says that has failed, there is no adapter.
        builder.observe_progress(progress if done else progress.model_copy(update={"adapter": None}))
    if builder.status.progress is not None:  # an attempt that ends has no estimate of its end
        builder.update_status(progress=builder.status.progress.replace(eta=None, eta_seconds=None))


def _reached(status: Status) -> tuple[object, ...]:
    """What the next attempt could continue from."""
    return status.progress.step if status.progress else None, status.checkpoint, status.adapter


def _with_cause(status: Status, attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause and its steps, which must be in the status before the pods are deleted."""
    reached, resumed = status.progress, status.resumed_from
    return noted(attempt, cause).replace(
        step_from=resumed.step if resumed else attempt.step_from, step_to=reached.step if reached else None
    )


def _judge(builder: PlanBuilder, attempt: Attempt, cause: Cause) -> None:
    """Closes the attempt, and decides what follows: the job finishes, or another attempt begins."""
    ended = _with_cause(builder.status, attempt, cause).replace(end=builder.now)
    if cause.verdict is Verdict.DONE and _extended(builder, attempt):
        ended = ended.replace(reason="Extended", message="done, and training.iterations has grown meanwhile")
    builder.update_attempt(ended)
    builder.update_status(
        failures=builder.status.failures + (1 if ended.counted else 0),
        accelerator_seconds=_accelerator_seconds(builder.status, ended),
        next_attempt_time=None,
    )
    builder.clear_conditions(ended.reason or "", "PodsReady", "Running")
    failures, limit = builder.status.failures, builder.run_policy.backoff_limit
    if ended.reason in PLANNED:
        if ended.reason == "SpecChanged":
            builder.record_event("Normal", ended.reason, ended.message or "", ended.number)
        again = ended.reason != "Suspended"
        builder.set_conditions(Restarting=ConditionState(again, ended.reason, ended.message or ""))
    elif cause.verdict is Verdict.DONE:
        _succeed(builder, ended)
    elif cause.verdict is Verdict.FATAL:
        fail(builder, cause)
    elif ended.counted and failures > limit:
        message = f"{cause.reason} in {failures} attempts, runPolicy.backoffLimit is {limit}: {cause.message}"
        fail(builder, cause, "BackoffLimitExceeded", message)
    else:
        _retry(builder, ended, cause)


def _accelerator_seconds(status: Status, ended: Attempt) -> int | None:
    """The sum over all attempts that have ended, the last of which is this one: the status keeps few of them."""
    if not ended.accelerators or ended.ready is None or ended.end is None:
        return status.accelerator_seconds
    seconds = max(0, int((ended.end - ended.ready).total_seconds()))
    return min((status.accelerator_seconds or 0) + ended.accelerators * seconds, MAX_TOTAL)


def _extended(builder: PlanBuilder, attempt: Attempt) -> bool:
    """Whether the user has asked for more iterations than the attempt was started for."""
    progress = last_words(builder.observed, builder.status, attempt)
    return bool(progress) and progress[-1].of is not None and progress[-1].of < builder.job.spec.training.iterations


def _succeed(builder: PlanBuilder, ended: Attempt) -> None:
    progress = builder.status.progress
    message = f"done: {progress.steps} iterations" if progress and progress.steps else "done"
    if ended.number > 1:
        message += f" in {ended.number} attempts"
    builder.record_event("Normal", "Succeeded", message, 0)
    _complete(builder, "Succeeded")
    builder.set_conditions(Succeeded=ConditionState(True, "Completed", message))
    builder.set_message(message, starting=False)


def _retry(builder: PlanBuilder, ended: Attempt, cause: Cause) -> None:
    delay = builder.retries.delay(builder.status.attempts)
    builder.update_status(next_attempt_time=builder.now + delay)
    builder.record_event("Warning", cause.reason, f"attempt {ended.number} ended: {cause.message}", ended.number)
    builder.set_conditions(Restarting=ConditionState(True, cause.reason, cause.message))


def _complete(builder: PlanBuilder, reason: str) -> None:
    builder.update_status(completion_time=builder.now, next_attempt_time=None)
    builder.clear_conditions(reason, "PodsReady", "Running", "Restarting")
