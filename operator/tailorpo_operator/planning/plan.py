"""What to do about a job: from what it asks for, what there is of it, and the time. Pure, and total.

Made from what is, never from what happened: planning twice changes nothing, and whoever plans may be killed between
any two of the plan's steps. One attempt is one gang of pods, which lives and dies together:

    begin -> going -> ending (`attempts[-1].reason` is set) -> judged (`end` is set) -> begin the next, or finished

An attempt is ending at the first pod that has failed, goes, or is gone; it is judged once, when no pod of it can run
any more, from all evidence together; before that no other begins.
"""

from datetime import datetime

from tailorpo_operator.api.conditions import Holds, holds
from tailorpo_operator.api.types import Attempt, Job
from tailorpo_operator.children.indexed_job import wants_gang, warnings
from tailorpo_operator.planning import attempts, end_cause, pending_reason, stopping
from tailorpo_operator.planning.actions import DeleteJob, DeletePod, Plan, StopAttempt
from tailorpo_operator.planning.backoff import AS_KUBERNETES, Retries
from tailorpo_operator.planning.builder import Draft
from tailorpo_operator.planning.causes import Cause, Verdict, lost, worst
from tailorpo_operator.planning.next_attempt import FIRST_LOOK, LAST_LOOK, between, resume
from tailorpo_operator.planning.observed import Children

ONE_BY_ONE = "placed one by one, for this cluster schedules no gangs"


def plan(job: Job, seen: Children, now: datetime, retries: Retries = AS_KUBERNETES) -> Plan:
    """What should exist, what should go, what the user should read, and when to look again."""
    draft = Draft(job, seen, now, retries)
    if job.deleting:
        return draft.plan()  # owner references see to its children
    if not attempts.finished(draft.status):
        _open(draft)
    if attempts.finished(draft.status):
        _finished(draft)
    _forget_old(draft)
    return draft.plan()


def _open(draft: Draft) -> None:
    """The job has not ended yet."""
    attempts.adopt(draft)
    if holds(draft.status, "Suspended") and not draft.policy.suspend:
        resume(draft)
    present = attempts.present(draft.status)
    if present is not None:
        attempts.keep_clock(draft, present)
        cause = end_cause.why(draft, present)
        if cause is None:
            _going(draft, present)
            return
        if not _ended(draft, present, cause):
            return
    if not attempts.finished(draft.status):
        between(draft)


def _finished(draft: Draft) -> None:
    """Terminal stays terminal: what still runs is stopped, and the job goes when its time to live is over."""
    draft.change(observed_generation=draft.job.generation)
    for gang in draft.seen.gangs:
        pods, over = draft.seen.of(gang.attempt), gang.deleting or gang.complete or gang.failed
        if any(not pod.done for pod in pods) if pods else not over:  # what has ended stays, for its log
            draft.delete += [] if gang.deleting else [StopAttempt(gang)]
    stopping.force(draft, draft.seen.living)
    ttl, end = draft.policy.ttl_seconds_after_finished, draft.status.completion_time
    going = bool(draft.delete) or any(pod.terminating is not None for pod in draft.seen.living)
    if ttl is not None and end is not None and draft.passed(end, ttl) and not going:  # else nobody would force them
        draft.delete.append(DeleteJob())


def _forget_old(draft: Draft) -> None:
    """The attempt before the present one stays, for its log."""
    newest = draft.status.attempts[-1].number if draft.status.attempts else 0
    old = [StopAttempt(gang) for gang in draft.seen.gangs if gang.attempt < newest - 1 and not gang.deleting]
    draft.delete += [stop for stop in old if stop not in draft.delete]


def _going(draft: Draft, attempt: Attempt) -> None:
    """The attempt waits for its pods, or runs."""
    gang = draft.seen.gang(attempt.number)
    assert gang is not None, "an attempt without a gang is ending"
    pods = draft.seen.of(attempt.number)
    ready = end_cause.ready(gang, pods)
    ran = holds(draft.status, "Running")
    words = f"attempt {attempt.number}: {attempts.pods(gang.workers)}" + (" running" if ready or ran else " starting")
    if ready and not ran:
        draft.announce("Normal", "Running", words, attempt.number)
    told = None if ready else pending_reason.unready(pods) if ran else pending_reason.why(draft.seen, gang)
    if told is not None:
        words = f"{words}, {told.message}" if ran else told.message
        if not ran and told.reason != pending_reason.QUEUED:
            draft.announce("Warning", told.reason, told.message, attempt.number)
    draft.conditions(
        Suspended=Holds(False, "NotSuspended"),
        PodsReady=Holds(ready, "PodsReady" if ready else told.reason if told else "Starting", "" if ready else words),
        Running=Holds(ready or ran, "Running" if ready or ran else "Starting"),
    )
    if ready or ran:
        draft.conditions(Restarting=Holds(False, "Running"))
    alone = [ONE_BY_ONE] if not ran and told and not gang.together and wants_gang(draft.job) else []
    draft.say("; ".join([words, *alone, *warnings(draft.job)]), starting=told is None)
    if draft.seen.report is not None and draft.seen.report.attempt == attempt.number:
        draft.see(draft.seen.report.progress)
    stopping.force(draft, draft.seen.living)  # a Job that was deleted may have made one more pod
    if not ready and not ran and pending_reason.untold(gang, pods):
        draft.look_after(attempt.start, FIRST_LOOK, LAST_LOOK)


def _ended(draft: Draft, attempt: Attempt, cause: Cause) -> bool:
    """The attempt is to end: stop what runs. Once nothing can run any more it is judged; returns whether it was."""
    gang, pods = draft.seen.gang(attempt.number), draft.seen.of(attempt.number)
    living = [pod for pod in pods if not pod.done]
    if cause.verdict is not Verdict.DONE:
        cause = worst([cause, *map(lost, stopping.overdue(draft, living))]) or cause
    stop = stopping.must_stop(gang, pods, cause)
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
    if gang is not None and (stop or stopping.keeps_forced(gang, living)):
        draft.delete.append(StopAttempt(gang))
    if gang is None:  # as the garbage collector will; it leaves those that were orphaned by a wish
        draft.delete += [DeletePod(pod) for pod in living if pod.terminating is None]
    else:
        stopping.hurry(draft, [pod for pod in living if cause.verdict is Verdict.DONE or pod.exit is not None])
    stopping.force(draft, living)
    return False
