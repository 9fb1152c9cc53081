"""Whether a status is worth a write: etcd stores each one, and every watch receives it."""

from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal

from tailorpo_operator.api.types import Attempt, Status

TRANSIENT = ("progress", "metrics")
"""Fields that change all the time while a job trains."""


Path = tuple[str, ...]
"""Of a field of the status; `[]` is any entry of a list."""


def difference(old: Status, new: Status, dropped: Set[Path] = frozenset()) -> Literal["none", "progress", "change"]:
    """Returns "progress" if only a step or a metric has changed. Times and estimates alone are no difference.

    dropped: fields that the API server does not keep, because its definition is older than this operator.
    """
    before, after = (_without_paths(status.to_dict(), dropped) for status in (old, new))
    if _without(before) != _without(after):
        return "change"
    return "progress" if _steps(before) != _steps(after) else "none"


def paths(raw: Any, path: Path = ()) -> Iterator[Path]:
    """Every field of a status."""
    if isinstance(raw, Mapping):
        for name, value in raw.items():
            yield (*path, name)
            yield from paths(value, (*path, name))
    elif isinstance(raw, list):
        for entry in raw:
            yield from paths(entry, (*path, "[]"))


def _without_paths(raw: Any, left_out: Set[Path], path: Path = ()) -> Any:
    if not left_out:
        return raw
    if isinstance(raw, Mapping):
        names = [name for name in raw if (*path, name) not in left_out]
        return {name: _without_paths(raw[name], left_out, (*path, name)) for name in names}
    if isinstance(raw, list):
        return [_without_paths(entry, left_out, (*path, "[]")) for entry in raw]
    return raw


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
