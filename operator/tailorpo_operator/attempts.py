"""The attempts of a job in its status: which is open, how one is judged, and how a job ends."""

from tailorpo_operator.api import Attempt, Status
from tailorpo_operator.conditions import Holds, holds
from tailorpo_operator.draft import Draft
from tailorpo_operator.ending import noted
from tailorpo_operator.failures import Cause, Verdict
from tailorpo_trainer.progress import Progress


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
    progress = draft.status.progress
    attempt = Attempt(number=newest, start=min(gang.created, draft.now), step_from=progress.step if progress else None)
    draft.change(attempts=[*draft.status.attempts, attempt], restarts=newest - 1, next_attempt_time=None)


def judge(draft: Draft, attempt: Attempt, cause: Cause) -> None:
    """The attempt is over: what it has reached, and what follows."""
    told = _last_progress(draft, attempt)
    if told is not None:
        draft.status = draft.status.seeing(told)
    reached = draft.status.progress
    ended = noted(attempt, cause).having(end=draft.now, step_to=reached.step if reached else None)
    if cause.verdict is Verdict.DONE and _extended(draft, told):
        ended = ended.having(reason="Extended", message="done, and training.iterations has grown meanwhile")
    draft.attempt(ended)
    draft.change(failures=draft.status.failures + (1 if ended.counted else 0))
    if ended.reason == "Extended" or cause.verdict is Verdict.OURS:
        draft.change(next_attempt_time=draft.now)
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
    draft.conditions(
        PodsReady=Holds(False, cause.reason),
        Running=Holds(False, cause.reason),
        Restarting=Holds(True, cause.reason, cause.message),
    )


def _over(draft: Draft, reason: str) -> None:
    if draft.status.progress is not None:
        draft.change(progress=draft.status.progress.having(eta=None, eta_seconds=None))
    draft.conditions(PodsReady=Holds(False, reason), Running=Holds(False, reason), Restarting=Holds(False, reason))


def _last_progress(draft: Draft, attempt: Attempt) -> Progress | None:
    """The last word of the attempt: of the pod that came farthest, else what was last told while it ran."""
    pods = draft.seen.of(attempt.number)
    told = [pod.exit.progress for pod in pods if pod.exit is not None and pod.exit.progress is not None]
    report = draft.seen.report
    told += [report.progress] if not told and report is not None and report.attempt == attempt.number else []
    return max(told, key=lambda each: each.step, default=None)


def _extended(draft: Draft, told: Progress | None) -> bool:
    asked = draft.job.spec.training.iterations
    return told is not None and told.of is not None and told.of < asked
