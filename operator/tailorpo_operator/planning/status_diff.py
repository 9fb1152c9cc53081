"""Whether a status is worth a write: each is read by everyone who watches, and kept by etcd."""

from typing import Any, Literal

from tailorpo_operator.api.types import Attempt, Status

FLEETING = ("progress", "metrics")
"""What changes all the time while a job trains."""


def news(old: Status, new: Status) -> Literal["none", "progress", "change"]:
    """Progress is news when a step is done or a figure changes; that time passes is none."""
    before, after = old.to_dict(), new.to_dict()
    if _without(before) != _without(after):
        return "change"
    return "progress" if _steps(before) != _steps(after) else "none"


def ended(old: Status, new: Status) -> list[Attempt]:
    """Attempts that are over now: the next may have begun already."""
    before = {attempt.number for attempt in old.attempts if attempt.end is not None}
    return [attempt for attempt in new.attempts if attempt.end is not None and attempt.number not in before]


def _without(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in FLEETING}


def _steps(tree: dict[str, Any]) -> tuple[Any, ...]:
    progress = tree.get("progress", {})
    return progress.get("step"), progress.get("of"), tree.get("metrics")
