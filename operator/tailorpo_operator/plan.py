"""What to do about a job: from what it asks for, what there is of it, and the time. Pure, and total.

Made from what is, never from what happened: planning twice changes nothing, and whoever plans may be killed between
any two of the plan's steps. One attempt is one gang of pods, which lives and dies together:

    begin -> going -> ending (`attempts[-1].reason` is set) -> judged (`end` is set) -> begin the next, or finished

An attempt is ending at the first pod that has failed, goes, or is gone; it is judged once, when no pod of it can run
any more, from all evidence together; before that no other begins.
"""

from datetime import UTC, datetime, timedelta

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
        if holds(draft.status, "Suspended") and not draft.policy.suspend:
            _resume(draft)
        present = attempts.present(draft.status)
        if present is not None:
            attempts.keep_clock(draft, present)
        if present is None:
            _between(draft)
        elif (cause := ending.why(draft, present)) is None:
            _going(draft, present)
        elif _ended(draft, present, cause):
            _between(draft)
    return draft.plan()


def _finished(draft: Draft) -> None:
    """Terminal stays terminal: what still runs is stopped, and the job goes when its time to live is over."""
    draft.change(observed_generation=draft.job.generation)
    for gang in draft.seen.gangs:
        pods, over = draft.seen.of(gang.attempt), gang.deleting or gang.complete or gang.failed
        if any(not pod.done for pod in pods) if pods else not over:  # what has ended stays, for its log
            draft.delete += [] if gang.deleting else [StopAttempt(gang)]
    _force(draft, draft.seen.living)
    ttl, end = draft.policy.ttl_seconds_after_finished, draft.status.completion_time
    if ttl is not None and end is not None and draft.passed(end, ttl):
        draft.delete.append(DeleteJob())


def _going(draft: Draft, attempt: Attempt) -> None:
    """The attempt waits for its pods, or runs."""
    gang = draft.seen.gang(attempt.number)
    assert gang is not None, "an attempt without a gang is ending"
    pods = draft.seen.of(attempt.number)
    ready = ending.ready(gang, pods)
    ran = holds(draft.status, "Running")
    words = f"attempt {attempt.number}: {attempts.pods(gang.workers)}" + (" running" if ready or ran else " starting")
    if ready and not ran:
        draft.announce("Normal", "Running", words, attempt.number)
    told = None if ready else waiting.unready(pods) if ran else waiting.why(draft.seen, gang)
    if told is not None:
        words = f"{words}, {told.message}" if ran else told.message
        if not ran and told.reason != waiting.QUEUED:
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
        draft.see(draft.seen.report.progress)
    _force(draft, pods)
    if not ready and not ran:
        draft.look_after(attempt.start, FIRST_LOOK, LAST_LOOK)


def _ended(draft: Draft, attempt: Attempt, cause: Cause) -> bool:
    """The attempt is to end: stop what runs. Once nothing can run any more it is judged; returns whether it was."""
    gang, pods = draft.seen.gang(attempt.number), draft.seen.of(attempt.number)
    living = [pod for pod in pods if not pod.done]
    if cause.verdict is not Verdict.DONE:
        cause = worst([cause, *map(lost, _overdue(draft, living))]) or cause
    stop = _must_stop(gang, pods, cause)
    news = attempts.hear(draft, attempt)
    if news and not draft.seen.fresh and any(pod.terminating is not None for pod in pods):
        draft.look_after(draft.now, 0, 0)  # it is written down first: such a pod may be gone at the next look
    elif not stop and not living:
        if draft.need_fresh():
            return False
        attempts.judge(draft, attempt, cause)
        return True
    draft.attempt(attempts.note(draft, attempt, cause))
    draft.conditions(PodsReady=Holds(False, cause.reason, cause.message))
    if cause.verdict in (Verdict.FREE, Verdict.COUNTED):
        draft.conditions(
            Running=Holds(False, cause.reason, cause.message), Restarting=Holds(True, cause.reason, cause.message)
        )
    draft.say(f"attempt {attempt.number} is ending: {cause.message}", starting=True)
    if stop and gang is not None:
        draft.delete.append(StopAttempt(gang))
    if gang is None:  # as the garbage collector will; it leaves those that were orphaned by a wish
        draft.delete += [DeletePod(pod) for pod in living if pod.terminating is None]
    else:
        _hurry(draft, [pod for pod in living if cause.verdict is Verdict.DONE or pod.exit is not None])
    _force(draft, living)
    return False


def _must_stop(gang: Gang | None, pods: tuple[Pod, ...], cause: Cause) -> bool:
    """Whether the gang runs on unless we stop it: at a failed pod the Job controller stops the others itself."""
    if gang is None or gang.deleting or gang.complete or gang.failed or cause.verdict is Verdict.DONE:
        return False
    return not any(pod.phase == "Failed" or pod.exit is not None for pod in pods)


def _hurry(draft: Draft, living: list[Pod]) -> None:
    """The first worker is done, so the run is; or a trainer is, but not its pod: they may take as long as a stop."""
    begun = since(draft.status, "PodsReady") or draft.now
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
        _finished(draft)
        return
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
            _clear(draft)
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
    attempts.announce(draft, number, workers)
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
    words = f"attempt {number}: {attempts.pods(workers)} starting"
    draft.say("; ".join([words, *children.warnings(draft.job)]), starting=True)
    draft.look_after(draft.now, FIRST_LOOK, LAST_LOOK)


def _refused(draft: Draft, told: Told) -> None:
    """The API server did not take what was to be made: a quota, an admission, a name that is another's."""
    reason = waiting.refusal(told)
    if reason == children.TooLarge.__name__:  # waiting will not help
        attempts.fail(draft, Cause(reason, told.message, Verdict.FATAL, 0))
        return
    number = draft.status.attempts[-1].number + 1 if draft.status.attempts else 1
    draft.announce("Warning", reason, told.message, number)
    draft.conditions(PodsReady=Holds(False, reason, told.message))
    if _past_start_deadline(draft):
        return
    draft.say(told.message, starting=False)
    draft.look_after(_waiting_since(draft), FIRST_LOOK, LAST_LOOK)


def _clear(draft: Draft) -> None:
    """Pods that may still write end before others begin. Another's are not ours to stop."""
    _force(draft, draft.seen.living)
    for pod in draft.seen.pods:
        if not pod.done and pod.terminating is None:
            gang = draft.seen.gang(pod.attempt)
            stop = DeletePod(pod) if gang is None else StopAttempt(gang)
            draft.delete += [] if stop in draft.delete or (gang is not None and gang.deleting) else [stop]
    names = [pod.name for pod in draft.seen.living]
    draft.say(f"waits until {', '.join(names[:3])}{', …' if len(names) > 3 else ''} have ended", starting=True)


def _suspended(draft: Draft) -> None:
    if draft.seen.living:
        _clear(draft)
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
    draft.say("suspended: goes on once runPolicy.suspend is false", starting=False)


def _resume(draft: Draft) -> None:
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
    attempts.fail(draft, ending.deadline(limit))
    return True


def _past_start_deadline(draft: Draft) -> bool:
    """While nothing can even be made; not while nobody has tried, as without an operator."""
    limit = draft.policy.start_deadline_seconds
    if limit is None or not draft.passed(_waiting_since(draft), limit):
        return False
    attempts.fail(draft, ending.start_deadline(limit, draft.seen.refused))
    return True


def _waiting_since(draft: Draft) -> datetime:
    """Since when the next attempt might have begun."""
    times = (draft.status.next_attempt_time, since(draft.status, "PodsReady"), since(draft.status, "Suspended"))
    return max((time for time in times if time is not None), default=draft.now)


def _last_words(draft: Draft) -> str:
    last, due = draft.status.attempts[-1], draft.status.next_attempt_time
    when = f"{due.astimezone(UTC):%H:%M:%S} UTC" if due is not None else "soon"
    return f"attempt {last.number} ended: {last.message or last.reason}; the next begins at {when}"
