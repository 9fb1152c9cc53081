"""Whether the present attempt is to end, and why."""

from collections.abc import Iterator
from datetime import timedelta

from tailorpo_operator.api import Attempt
from tailorpo_operator.conditions import holds
from tailorpo_operator.draft import Draft
from tailorpo_operator.failures import (
    GANG_DELETED,
    OURS,
    VANISHED,
    Cause,
    Verdict,
    gang_deleted,
    of,
    remembered,
    vanished,
    worst,
)
from tailorpo_operator.observed import Gang, Pod, Told
from tailorpo_operator.waiting import why as why_waiting

STALLS = 2
"""Times `stallTimeoutSeconds` without a step: the trainer's own watchdog comes first."""


def why(draft: Draft, attempt: Attempt) -> Cause | None:
    """The cause that explains the others; None while the attempt goes on."""
    gang, pods = draft.seen.gang(attempt.number), draft.seen.of(attempt.number)
    leader = next((pod for pod in pods if pod.index == 0 and pod.succeeded), None)
    if leader is not None:  # what it has written is the result, whatever the others say
        return of(leader)
    known = remembered(attempt)
    if known is not None and known.verdict is Verdict.OURS:
        return known
    if known is None and (asked := _asked(draft, attempt, gang, pods)) is not None:
        return asked
    found = [cause for pod in pods if (cause := of(pod)) is not None and cause.verdict is not Verdict.DONE]
    found += [known] if known is not None else []
    found += _missing(draft, gang, pods, known)
    cause = worst(found)
    if cause is not None and known is None and cause.weight in (GANG_DELETED, VANISHED):
        # What is not there may not have been seen yet; and the Job controller deletes pods too, when one has failed.
        draft.need_fresh()
    return cause


def noted(attempt: Attempt, cause: Cause) -> Attempt:
    """The attempt with its cause, so that it is known when the pods that told it are gone."""
    return attempt.having(
        reason=cause.reason,
        message=cause.message,
        counted=cause.verdict in (Verdict.COUNTED, Verdict.FATAL),
        exit_code=cause.exit_code,
        rank=cause.rank,
        node=cause.node,
    )


def deadline(seconds: int) -> Cause:
    return _ours("DeadlineExceeded", f"runPolicy.activeDeadlineSeconds: {seconds} s have passed", Verdict.FATAL)


def start_deadline(seconds: int, told: Told | None) -> Cause:
    words = f"runPolicy.startDeadlineSeconds: not all pods run after {seconds} s"
    return _ours("StartDeadlineExceeded", f"{words}: {told.message}" if told and told.message else words, Verdict.FATAL)


def _asked(draft: Draft, attempt: Attempt, gang: Gang | None, pods: tuple[Pod, ...]) -> Cause | None:
    """An end that the job itself asks for."""
    policy, status = draft.policy, draft.status
    if policy.suspend:
        return _ours("Suspended", "runPolicy.suspend is true", Verdict.OURS)
    limit, began = policy.active_deadline_seconds, status.start_time
    if limit is not None and began is not None and draft.passed(began, limit):
        return deadline(limit)
    limit = policy.start_deadline_seconds
    if limit is not None and gang is not None and not gang.suspended and not holds(status, "Running"):
        ready = len(pods) == gang.workers and all(pod.ready for pod in pods)
        begun = max(time for time in (attempt.start, gang.started) if time is not None)
        if not ready and draft.passed(begun, limit):
            return start_deadline(limit, why_waiting(draft.seen, gang))
    return _stalled(draft, attempt)


def _stalled(draft: Draft, attempt: Attempt) -> Cause | None:
    report = draft.seen.report
    if report is None or report.attempt != attempt.number or report.progress.phase != "Running":
        return None
    limit = STALLS * draft.policy.stall_timeout_seconds
    if not draft.passed(report.moved, limit):
        return None
    words = f"no step for {timedelta(seconds=limit)}, though the trainer answers"
    return Cause("NoProgress", f"{words}: stopped at step {report.progress.step}", Verdict.COUNTED, OURS)


def _missing(draft: Draft, gang: Gang | None, pods: tuple[Pod, ...], known: Cause | None) -> Iterator[Cause]:
    """What was there and is gone."""
    if gang is None or gang.deleting:
        if known is None:  # else we have deleted it ourselves
            yield gang_deleted()
        return
    old = {pod.index for pod in pods if pod.phase != "Pending"}
    if holds(draft.status, "Running"):
        # Gone, or replaced: a gang with a new member cannot go on.
        yield from (vanished(index) for index in range(gang.workers) if index not in old)
    elif gang.failed and len(old) < gang.workers:
        # Pods that fail stay: this one was deleted, by a drain or by hand, while nobody looked.
        yield vanished(min(set(range(gang.workers)) - old))


def _ours(reason: str, message: str, verdict: Verdict) -> Cause:
    return Cause(reason, message, verdict, OURS)
