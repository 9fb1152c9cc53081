"""The attempts of a job in its status: which is open, how one is judged, and how a job ends."""

from datetime import datetime, timedelta

from tailorpo_operator.api.conditions import Holds, condition, holds
from tailorpo_operator.api.types import Attempt, Status
from tailorpo_operator.planning.backoff import PLANNED
from tailorpo_operator.planning.builder import Draft
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.end_cause import noted
from tailorpo_operator.planning.pending_reason import QUEUED
from tailorpo_trainer.spec.progress import Progress


def finished(status: Status) -> bool:
    return holds(status, "Succeeded") or holds(status, "Failed")


def present(status: Status) -> Attempt | None:
    """The attempt that is open."""
    return status.attempts[-1] if status.attempts and status.attempts[-1].end is None else None


def adopt(draft: Draft) -> None:
    """An attempt whose Job was made, and whoever made it did not come to say so."""
    last = draft.status.attempts[-1] if draft.status.attempts else None
    newest = max((gang.attempt for gang in draft.seen.gangs), default=0)
    gang = draft.seen.gang(newest)
    if gang is None or newest <= (last.number if last else 0) or (last is not None and last.end is None):
        return
    begin(draft, newest, min(gang.created, draft.now), gang.workers)


def begin(draft: Draft, number: int, start: datetime, workers: int) -> None:
    """It is the present one from now on. Where it really goes on from, the trainer will say."""
    reached = draft.status.checkpoint or draft.status.progress
    attempt = Attempt(number=number, start=start, step_from=reached.step if reached else None)
    draft.change(
        attempts=[*draft.status.attempts, attempt], restarts=number - 1, next_attempt_time=None, resumed_from=None
    )
    draft.announce("Normal", "AttemptStarted", f"attempt {number}: {pods(workers)}", number)


def keep_clock(draft: Draft, attempt: Attempt) -> None:
    """Since when the deadline of all attempts counts: from the first pod that ran, without time spent in a queue."""
    began, gang = draft.status.start_time, draft.seen.gang(attempt.number)
    if began is None:
        if any(pod.ran for pod in draft.seen.of(attempt.number)):
            draft.change(start_time=draft.now)
        return
    queued = gang is not None and gang.suspended and not draft.policy.suspend
    before = condition(draft.status, "PodsReady")
    if before is not None and before.reason == QUEUED and not queued and attempt.start is not None:
        draft.change(start_time=min(draft.now, began + max(timedelta(), draft.now - attempt.start)))


def hear(draft: Draft, attempt: Attempt) -> bool:
    """Takes over the last words of its pods; returns whether they tell of anything to go on from."""
    before = _reached(draft)
    for told in _last_words(draft, attempt):
        draft.see(told)
    if draft.status.progress is not None:  # what ends will not be done in a while
        draft.change(progress=draft.status.progress.having(eta=None, eta_seconds=None))
    return _reached(draft) != before


def note(draft: Draft, attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause and how far it came, known when the pods that told it are gone."""
    reached, resumed = draft.status.progress, draft.status.resumed_from
    return noted(attempt, cause).having(
        step_from=resumed.step if resumed else attempt.step_from, step_to=reached.step if reached else None
    )


def judge(draft: Draft, attempt: Attempt, cause: Cause) -> None:
    """The attempt is over: what it has reached, and what follows."""
    told = _last_words(draft, attempt)
    hear(draft, attempt)
    ended = note(draft, attempt, cause).having(end=draft.now)
    if cause.verdict is Verdict.DONE and _extended(draft, told):
        ended = ended.having(reason="Extended", message="done, and training.iterations has grown meanwhile")
    draft.attempt(ended)
    draft.change(failures=draft.status.failures + (1 if ended.counted else 0), next_attempt_time=None)
    draft.conditions(PodsReady=Holds(False, ended.reason or ""), Running=Holds(False, ended.reason or ""))
    if ended.reason in PLANNED:
        draft.conditions(Restarting=Holds(ended.reason == "Extended", ended.reason, ended.message or ""))
    elif cause.verdict is Verdict.DONE:
        _succeed(draft, ended)
    elif cause.verdict is Verdict.FATAL:
        fail(draft, cause)
    elif ended.counted and draft.status.failures > draft.policy.backoff_limit:
        words = f"{cause.reason} in {draft.status.failures} attempts, runPolicy.backoffLimit is"
        fail(draft, cause, "BackoffLimitExceeded", f"{words} {draft.policy.backoff_limit}: {cause.message}")
    else:
        _retry(draft, ended, cause)


def fail(draft: Draft, cause: Cause, reason: str | None = None, message: str | None = None) -> None:
    """The job ends without a result."""
    reason, message = reason or cause.reason, message or cause.message
    draft.announce("Warning", "Failed", f"{reason}: {message}", 0)
    draft.change(completion_time=draft.now, next_attempt_time=None)
    _over(draft, reason)
    draft.conditions(Failed=Holds(True, reason, message))
    draft.say(message, starting=False)


def _succeed(draft: Draft, ended: Attempt) -> None:
    progress = draft.status.progress
    words = f"done: {progress.steps} iterations" if progress and progress.steps else "done"
    if ended.number > 1:
        words += f" in {ended.number} attempts"
    draft.announce("Normal", "Succeeded", words, 0)
    draft.change(completion_time=draft.now, next_attempt_time=None)
    _over(draft, "Succeeded")
    draft.conditions(Succeeded=Holds(True, "Completed", words))
    draft.say(words, starting=False)


def _retry(draft: Draft, ended: Attempt, cause: Cause) -> None:
    delay = draft.retries.delay(draft.status.attempts)
    draft.change(next_attempt_time=draft.now + delay)
    draft.announce("Warning", cause.reason, f"attempt {ended.number} ended: {cause.message}", ended.number)
    draft.conditions(Restarting=Holds(True, cause.reason, cause.message))


def _over(draft: Draft, reason: str) -> None:
    draft.conditions(PodsReady=Holds(False, reason), Running=Holds(False, reason), Restarting=Holds(False, reason))


def _reached(draft: Draft) -> tuple[object, ...]:
    status = draft.status
    return status.progress.step if status.progress else None, status.checkpoint, status.adapter


def pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _last_words(draft: Draft, attempt: Attempt) -> list[Progress]:
    """Those of its pods, what came farthest last; or what was told while it ran, if that is farther than is known.

    Of those that came equally far the first worker has the last word: it alone knows of checkpoints.
    """
    witnesses = sorted(draft.seen.witnesses(attempt.number), key=lambda pod: pod.index, reverse=True)
    told = [pod.exit.progress for pod in witnesses if pod.exit is not None and pod.exit.progress is not None]
    report, known = draft.seen.report, draft.status.progress
    if not told and report is not None and report.attempt == attempt.number:
        told += [report.progress] if known is None or report.progress.step > known.step else []
    return sorted(told, key=lambda each: each.step)


def _extended(draft: Draft, told: list[Progress]) -> bool:
    asked = draft.job.spec.training.iterations
    return bool(told) and told[-1].of is not None and told[-1].of < asked
