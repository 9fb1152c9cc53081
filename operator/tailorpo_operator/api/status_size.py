"""Limits the size of a status, because etcd reads and writes whole objects. The least useful fields go first."""

import json
from collections.abc import Callable

from tailorpo_operator.api.types import Status
from tailorpo_trainer.spec.progress import shorten

MAX_BYTES = 8000

# Go's encoder writes these characters longer than Python's does.
_ESCAPED = ("<", ">", "&", "\u2028", "\u2029")


def size(status: Status) -> int:
    """Bytes of a status as the API server stores it."""
    text = json.dumps(status.to_dict(), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) + 5 * sum(map(text.count, _ESCAPED))


def shrink(status: Status) -> Status:
    """The status in at most `MAX_BYTES`: phase, conditions without messages, numbers, the last attempt stay."""
    for cut in _CUTS:
        if size(status) <= MAX_BYTES:
            return status
        status = cut(status)
    assert size(status) <= MAX_BYTES, "the status is too large after all cuts"
    return status


def _drop_old_messages(status: Status) -> Status:
    attempts = [attempt.replace(message=None) for attempt in status.attempts[:-1]]
    return status.replace(attempts=[*attempts, *status.attempts[-1:]])


def _keep_attempts(count: int) -> Callable[[Status], Status]:
    return lambda status: status.replace(attempts=status.attempts[-count:])


def _shorten_messages(length: int) -> Callable[[Status], Status]:
    """Messages of at most so many characters."""

    def cut(status: Status) -> Status:
        return status.replace(
            message=None if status.message is None else shorten(status.message, length),
            conditions=[
                condition.replace(message=shorten(condition.message, length)) for condition in status.conditions
            ],
            attempts=[
                attempt.replace(message=None if attempt.message is None else shorten(attempt.message, length))
                for attempt in status.attempts
            ],
        )

    return cut


def _drop(field: str) -> Callable[[Status], Status]:
    # A truncated URI would be wrong.
    return lambda status: status.replace(**{field: None})


_CUTS: tuple[Callable[[Status], Status], ...] = (
    _drop_old_messages,
    _keep_attempts(5),
    _shorten_messages(128),
    _drop("resumed_from"),
    _keep_attempts(1),
    _shorten_messages(32),
    _drop("adapter"),
    _drop("checkpoint"),
)
