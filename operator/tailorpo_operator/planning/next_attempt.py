"""What to do while no attempt is open: hold, wait, or begin the next one."""

from datetime import UTC, datetime, timedelta

from tailorpo_operator.api.conditions import Holds, holds, since
from tailorpo_operator.children.indexed_job import TooLarge, warnings
from tailorpo_operator.planning import attempts, end_cause, pending_reason, stopping
from tailorpo_operator.planning.actions import CreateAttempt, CreateService
from tailorpo_operator.planning.builder import Draft
from tailorpo_operator.planning.causes import Cause, Verdict
from tailorpo_operator.planning.observed import Told

FIRST_LOOK, LAST_LOOK = 2.0, 30.0
"""Seconds between looks at what keeps pods from running: no watch tells of that."""


def between(draft: Draft) -> None:
    """No attempt is open: hold, wait, or begin the next one."""
    if draft.policy.suspend:
        _suspended(draft)
        return
    if _past_active_deadline(draft):
        return
    due = draft.status.next_attempt_time
    if due is not None and not draft.passed(due, 0):
        draft.say(_last_words(draft), starting=False)
        return
    if draft.seen.living:
        if not _past_start_deadline(draft):
            stopping.clear(draft)
        return
    if (draft.status.attempts or draft.seen.reused) and draft.need_fresh():
        return
    if draft.seen.refused is not None:
        _refused(draft, draft.seen.refused)
        return
    _begin(draft)


def _begin(draft: Draft) -> None:
    """The next attempt. Its objects are made before the status says so: a name that is taken by our own is no error."""
    last = draft.status.attempts[-1].number if draft.status.attempts else 0
    number, workers = last + 1, draft.job.spec.workers
    if workers > 1:  # each time, for somebody may have deleted it
        draft.create.append(CreateService())
    draft.create.append(CreateAttempt(number))
    attempts.begin(draft, number, draft.now, workers)
    words = f"attempt {number}: {attempts.pods(workers)} starting"  # as the next look will: it is worth no write
    draft.conditions(
        Suspended=Holds(False, "NotSuspended"),
        PodsReady=Holds(False, "Starting", words),
        Running=Holds(False, "Starting"),
    )
    draft.say("; ".join([words, *warnings(draft.job)]), starting=True)
    draft.look_after(draft.now, FIRST_LOOK, LAST_LOOK)


def _refused(draft: Draft, told: Told) -> None:
    """The API server did not take what was to be made: a quota, an admission, a name that is another's."""
    reason = pending_reason.refusal(told)
    if reason == TooLarge.__name__:  # waiting will not help
        attempts.fail(draft, Cause(reason, told.message, Verdict.FATAL, 0))
        return
    number = draft.status.attempts[-1].number + 1 if draft.status.attempts else 1
    draft.announce("Warning", reason, told.message, number)
    draft.conditions(PodsReady=Holds(False, reason, told.message))
    if _past_start_deadline(draft):
        return
    draft.say(told.message, starting=False)
    draft.look_after(_waiting_since(draft), FIRST_LOOK, LAST_LOOK)


def _suspended(draft: Draft) -> None:
    if draft.seen.living:
        stopping.clear(draft)
        return
    if not holds(draft.status, "Suspended"):
        draft.announce("Normal", "Suspended", "holds no pods until runPolicy.suspend is false", draft.job.generation)
    draft.change(next_attempt_time=None)
    draft.conditions(
        Suspended=Holds(True, "Suspended", "runPolicy.suspend is true"),
        PodsReady=Holds(False, "Suspended"),
        Running=Holds(False, "Suspended"),
        Restarting=Holds(False, "Suspended"),
    )
    draft.say("holds no pods until runPolicy.suspend is false", starting=False)


def resume(draft: Draft) -> None:
    """The time in which it was suspended does not count against its deadline."""
    began, stopped = draft.status.start_time, since(draft.status, "Suspended")
    if began is not None and stopped is not None:
        draft.change(start_time=began + max(timedelta(), draft.now - stopped))
    draft.announce("Normal", "Resumed", "runPolicy.suspend is false again", draft.job.generation)
    draft.conditions(Suspended=Holds(False, "Resumed"))


def _past_active_deadline(draft: Draft) -> bool:
    limit, began = draft.policy.active_deadline_seconds, draft.status.start_time
    if limit is None or began is None or not draft.passed(began, limit):
        return False
    attempts.fail(draft, end_cause.deadline(limit))
    return True


def _past_start_deadline(draft: Draft) -> bool:
    """While nothing can even be made; not while nobody has tried, as without an operator."""
    limit = draft.policy.start_deadline_seconds
    if limit is None or not draft.passed(_waiting_since(draft), limit):
        return False
    attempts.fail(draft, end_cause.start_deadline(limit, draft.seen.refused))
    return True


def _waiting_since(draft: Draft) -> datetime:
    """Since when the next attempt might have begun."""
    times = (draft.status.next_attempt_time, since(draft.status, "PodsReady"), since(draft.status, "Suspended"))
    return max((time for time in times if time is not None), default=draft.now)


def _last_words(draft: Draft) -> str:
    last, due = draft.status.attempts[-1:], draft.status.next_attempt_time
    ended = "".join(f"attempt {each.number} ended: {each.message or each.reason}; " for each in last)
    return f"{ended}the next begins at {due.astimezone(UTC):%H:%M:%S} UTC" if due is not None else ended
