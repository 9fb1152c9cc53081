"""What to do about a job: from what it asks for, what there is of it, and the time. Pure, and total.

Made from what is, never from what happened: planning twice changes nothing, and whoever plans may be killed between
any two of the plan's steps. One attempt is one gang of pods, which lives and dies together:

    begin -> going -> ending (`attempts[-1].reason` is set) -> judged (`end` is set) -> begin the next, or finished

An attempt is ending at the first pod that has failed, goes, or is gone; it is judged once, when no pod of it can run
any more, from all evidence together; before that no other begins.
"""

from datetime import datetime, timedelta

from tailorpo_operator import attempts, children, ending, waiting
from tailorpo_operator.actions import CreateAttempt, CreateService, DeleteJob, DeletePod, Plan, StopAttempt
from tailorpo_operator.api import Attempt, Job
from tailorpo_operator.conditions import Holds, holds, since
from tailorpo_operator.draft import Draft
from tailorpo_operator.failures import Cause, Verdict, lost, worst
from tailorpo_operator.observed import Children, Gang, Pod, Told
from tailorpo_operator.retries import AS_KUBERNETES, Retries

FIRST_LOOK, LAST_LOOK = 2.0, 30.0
"""Seconds between looks at what keeps pods from running: no watch tells of that."""


def plan(job: Job, seen: Children, now: datetime, retries: Retries = AS_KUBERNETES) -> Plan:
    """What should exist, what should go, what the user should read, and when to look again."""
    draft = Draft(job, seen, now, retries)
    if job.deleting:
        return draft.plan()  # owner references see to its children
    if attempts.finished(job.status):
        _finished(draft)
    else:
        attempts.adopt(draft)
        present = attempts.present(draft.status)
        if present is None:
            _between(draft)
        elif (cause := ending.why(draft, present)) is None:
            _going(draft, present)
        elif _ended(draft, present, cause):
            _between(draft)
    return draft.plan()


def _finished(draft: Draft) -> None:
    """Terminal stays terminal: what still runs is stopped, and the job goes when its time to live is over."""
    for gang in draft.seen.gangs:
        if not gang.deleting and any(not pod.done for pod in draft.seen.of(gang.attempt)):
            draft.delete.append(StopAttempt(gang))
    _force(draft, draft.seen.pods)
    ttl, end = draft.policy.ttl_seconds_after_finished, draft.status.completion_time
    if ttl is not None and end is not None and draft.passed(end, ttl):
        draft.delete.append(DeleteJob())


def _going(draft: Draft, attempt: Attempt) -> None:
    """The attempt waits for its pods, or runs."""
    gang = draft.seen.gang(attempt.number)
    assert gang is not None, "an attempt without a gang is ending"
    pods = draft.seen.of(attempt.number)
    ready = len(pods) == gang.workers and all(pod.ready for pod in pods)
    ran = holds(draft.status, "Running")
    if ready and not ran:
        draft.change(start_time=draft.status.start_time or draft.now)
        draft.announce("Normal", "Running", f"attempt {attempt.number}: {_pods(gang.workers)} running", attempt.number)
    told = None if ready or ran else waiting.why(draft.seen, gang)
    words = f"attempt {attempt.number}: {_pods(gang.workers)}" + (" running" if ready or ran else " starting")
    if told is not None:
        words = told.message
        if told.reason != "Queued":
            draft.announce("Warning", told.reason, told.message, attempt.number)
    draft.conditions(
        Suspended=Holds(False, "NotSuspended"),
        PodsReady=Holds(ready, "PodsReady" if ready else told.reason if told else "Starting", "" if ready else words),
        Running=Holds(ready or ran, "Running" if ready or ran else "Starting"),
    )
    if ready or ran:
        draft.conditions(Restarting=Holds(False, "Running"))
    draft.say("; ".join([words, *children.warnings(draft.job)]), starting=told is None)
    if draft.seen.report is not None and draft.seen.report.attempt == attempt.number:
        draft.status = draft.status.seeing(draft.seen.report.progress)
    if not ready and not ran:
        draft.look_after(attempt.start, FIRST_LOOK, LAST_LOOK)


def _ended(draft: Draft, attempt: Attempt, cause: Cause) -> bool:
    """The attempt is to end: stop what runs. Once nothing can run any more it is judged; returns whether it was."""
    gang, pods = draft.seen.gang(attempt.number), draft.seen.of(attempt.number)
    living = [pod for pod in pods if not pod.done]
    lost_ones = _overdue(draft, living)
    cause = worst([cause, *map(lost, lost_ones)]) or cause
    stop = _must_stop(gang, pods, cause)
    if not stop and not living:
        if draft.need_fresh():
            return False
        attempts.judge(draft, attempt, cause)
        return True
    draft.attempt(ending.noted(attempt, cause))
    restarting = cause.verdict in (Verdict.FREE, Verdict.COUNTED)
    draft.conditions(
        PodsReady=Holds(False, cause.reason, cause.message),
        Running=Holds(False, cause.reason, cause.message),
        Restarting=Holds(restarting, cause.reason, cause.message if restarting else ""),
    )
    draft.say(f"attempt {attempt.number} is ending: {cause.message}", starting=True)
    if stop and gang is not None:
        draft.delete.append(StopAttempt(gang))
    if cause.verdict is Verdict.DONE:
        _hurry(draft, living)
    _force(draft, living)
    return False


def _must_stop(gang: Gang | None, pods: tuple[Pod, ...], cause: Cause) -> bool:
    """Whether the gang runs on unless we stop it: at a failed pod the Job controller stops the others itself."""
    if gang is None or gang.deleting or gang.complete or gang.failed or cause.verdict is Verdict.DONE:
        return False
    return not any(pod.phase == "Failed" for pod in pods)


def _hurry(draft: Draft, living: list[Pod]) -> None:
    """The first worker is done, so the run is: the others may take as long as a stop may."""
    begun = since(draft.status, "Running") or draft.now
    grace = draft.policy.termination_grace_period_seconds
    staying = [pod for pod in living if pod.terminating is None]
    if staying and draft.passed(begun, grace):
        draft.delete += [DeletePod(pod) for pod in staying]


def _overdue(draft: Draft, pods: list[Pod]) -> list[Pod]:
    """Those that should have confirmed their deletion long ago."""
    return [
        pod
        for pod in pods
        if pod.terminating is not None and draft.passed(pod.terminating, pod.grace + draft.retries.lost)
    ]


def _force(draft: Draft, pods: tuple[Pod, ...] | list[Pod]) -> None:
    """A lost node never confirms. A writer that runs on there spoils nothing: each attempt has a prefix of its own."""
    draft.delete += [DeletePod(pod, force=True) for pod in _overdue(draft, [pod for pod in pods if not pod.done])]


def _between(draft: Draft) -> None:
    """No attempt is open: hold, wait, or begin the next one."""
    if attempts.finished(draft.status):
        return
    if draft.policy.suspend:
        _suspended(draft)
        return
    if holds(draft.status, "Suspended"):
        _resume(draft)
    if _past_active_deadline(draft) or _past_start_deadline(draft):
        return
    due = draft.status.next_attempt_time
    if due is not None and not draft.passed(due, 0):
        draft.say(_last_words(draft), starting=False)
        return
    if draft.seen.living:
        _force(draft, draft.seen.living)
        draft.say("waits until the pods of the attempt before have ended", starting=True)
        return
    if draft.status.attempts and draft.need_fresh():
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
    draft.delete += [StopAttempt(gang) for gang in draft.seen.gangs if gang.attempt < last and not gang.deleting]
    progress = draft.status.progress
    draft.announce("Normal", "AttemptStarted", f"attempt {number}: {_pods(workers)}", number)
    draft.change(
        attempts=[
            *draft.status.attempts,
            Attempt(number=number, start=draft.now, step_from=progress.step if progress else None),
        ],
        restarts=number - 1,
        next_attempt_time=None,
    )
    draft.conditions(
        Suspended=Holds(False, "NotSuspended"),
        PodsReady=Holds(False, "Starting"),
        Running=Holds(False, "Starting"),
    )
    draft.say("; ".join([f"attempt {number}: {_pods(workers)} starting", *children.warnings(draft.job)]), starting=True)
    draft.look_after(draft.now, FIRST_LOOK, LAST_LOOK)


def _refused(draft: Draft, told: Told) -> None:
    """The API server did not take what was to be made: a quota, an admission, a name that is another's."""
    reason = waiting.refusal(told)
    if reason == children.TooLarge.__name__:  # waiting will not help
        attempts.fail(draft, Cause(reason, told.message, Verdict.FATAL, 0))
        return
    draft.announce("Warning", reason, told.message, draft.status.restarts)
    draft.conditions(PodsReady=Holds(False, reason, told.message))
    draft.say(told.message, starting=False)
    draft.look_after(_waiting_since(draft), FIRST_LOOK, LAST_LOOK)


def _suspended(draft: Draft) -> None:
    if draft.seen.living:
        _force(draft, draft.seen.living)
        draft.say("waits until its pods have ended", starting=True)
        return
    if not holds(draft.status, "Suspended"):
        draft.announce("Normal", "Suspended", "holds no pods until runPolicy.suspend is false", draft.status.restarts)
    draft.conditions(
        Suspended=Holds(True, "Suspended", "runPolicy.suspend is true"),
        PodsReady=Holds(False, "Suspended"),
        Running=Holds(False, "Suspended"),
        Restarting=Holds(False, "Suspended"),
    )
    draft.say("suspended: goes on once runPolicy.suspend is false", starting=False)


def _resume(draft: Draft) -> None:
    """The time in which it was suspended does not count against its deadline."""
    began, stopped = draft.status.start_time, since(draft.status, "Suspended")
    if began is not None and stopped is not None:
        draft.change(start_time=began + max(timedelta(), draft.now - stopped))
    draft.announce("Normal", "Resumed", "runPolicy.suspend is false again", draft.status.restarts)
    draft.conditions(Suspended=Holds(False, "Resumed"))


def _past_active_deadline(draft: Draft) -> bool:
    limit, began = draft.policy.active_deadline_seconds, draft.status.start_time
    if limit is None or began is None or not draft.passed(began, limit):
        return False
    attempts.fail(draft, ending.deadline(limit))
    return True


def _past_start_deadline(draft: Draft) -> bool:
    """While nothing could even be made."""
    limit = draft.policy.start_deadline_seconds
    if limit is None or not draft.passed(_waiting_since(draft), limit):
        return False
    last = draft.status.message if draft.status.phase == "Pending" else None
    attempts.fail(draft, ending.start_deadline(limit, Told("", last or "")))
    return True


def _waiting_since(draft: Draft) -> datetime:
    """Since when the next attempt might have begun."""
    times = (draft.status.next_attempt_time, since(draft.status, "PodsReady"), since(draft.status, "Suspended"))
    return max((time for time in times if time is not None), default=draft.now)


def _last_words(draft: Draft) -> str:
    last, due = draft.status.attempts[-1], draft.status.next_attempt_time
    when = f"{due:%H:%M:%S} UTC" if due is not None else "soon"
    return f"attempt {last.number} ended: {last.message}; the next begins at {when}"


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"
