"""A status that stays small: what a person needs least goes first. Objects of etcd are read and written whole."""

import json
from collections.abc import Callable

from tailorpo_operator.api.types import Status
from tailorpo_trainer.spec.progress import shorten

MAX_BYTES = 8000

# Longer as Go's encoder writes them than as Python's does.
_ESCAPED = ("<", ">", "&", "\u2028", "\u2029")


def size(status: Status) -> int:
    """Bytes of a status as the API server stores it."""
    text = json.dumps(status.to_dict(), ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) + 5 * sum(map(text.count, _ESCAPED))


def fitted(status: Status) -> Status:
    """The same in at most `MAX_BYTES`: phase, figures, conditions but their texts, and the last attempt's end stay."""
    for cut in _CUTS:
        if size(status) <= MAX_BYTES:
            return status
        status = cut(status)
    assert size(status) <= MAX_BYTES, "the cuts leave something large"
    return status


def _old_notes(status: Status) -> Status:
    attempts = [attempt.replace(message=None) for attempt in status.attempts[:-1]]
    return status.replace(attempts=[*attempts, *status.attempts[-1:]])


def _last_attempts(count: int) -> Callable[[Status], Status]:
    return lambda status: status.replace(attempts=status.attempts[-count:])


def _texts(length: int) -> Callable[[Status], Status]:
    """Texts of at most so many characters."""

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


def _without(field: str) -> Callable[[Status], Status]:
    # A URI cut short would be a wrong one.
    return lambda status: status.replace(**{field: None})


_CUTS: tuple[Callable[[Status], Status], ...] = (
    _old_notes,
    _last_attempts(5),
    _texts(128),
    _without("resumed_from"),
    _last_attempts(1),
    _texts(32),
    _without("adapter"),
    _without("checkpoint"),
)
