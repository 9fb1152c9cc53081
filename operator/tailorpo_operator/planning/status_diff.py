"""Whether a status is worth a write: etcd stores each one, and every watch receives it."""

from typing import Any, Literal

from tailorpo_operator.api.types import Attempt, Status

TRANSIENT = ("progress", "metrics")
"""Fields that change all the time while a job trains."""


def difference(old: Status, new: Status) -> Literal["none", "progress", "change"]:
    """Returns "progress" if only a step or a metric has changed. Times and estimates alone are no difference."""
    before, after = old.to_dict(), new.to_dict()
    if _without(before) != _without(after):
        return "change"
    return "progress" if _steps(before) != _steps(after) else "none"


def newly_ended(old: Status, new: Status) -> list[Attempt]:
    """Attempts that have ended since the old status; the next one may have begun already."""
    before = {attempt.number for attempt in old.attempts if attempt.end is not None}
    return [attempt for attempt in new.attempts if attempt.end is not None and attempt.number not in before]


def newly_ready(old: Status, new: Status) -> list[Attempt]:
    """Attempts whose pods have all run since the old status."""
    before = {attempt.number for attempt in old.attempts if attempt.ready is not None}
    return [attempt for attempt in new.attempts if attempt.ready is not None and attempt.number not in before]


def newly_begun(old: Status, new: Status) -> list[Attempt]:
    """Attempts that have begun since the old status."""
    newest = max((attempt.number for attempt in old.attempts), default=0)
    return [attempt for attempt in new.attempts if attempt.number > newest]


def _without(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in TRANSIENT}


def _steps(raw: dict[str, Any]) -> tuple[Any, ...]:
    progress = raw.get("progress", {})
    return progress.get("step"), progress.get("of"), raw.get("metrics")
