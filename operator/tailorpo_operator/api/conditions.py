"""Conditions in the form of `metav1.Condition`, and the phase that follows from them."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from tailorpo_operator.api.types import Condition, ConditionType, Phase, Status


class ConditionState(NamedTuple):
    """The state of a condition."""

    is_true: bool
    reason: str
    message: str = ""


ORDINARY = ("Starting", "PodsReady")
"""Reasons of the condition PodsReady that name nothing that keeps pods away."""

ORDER: tuple[ConditionType, ...] = ("Suspended", "PodsReady", "Running", "Restarting", "Succeeded", "Failed")


def is_true(status: Status, kind: ConditionType) -> bool:
    return (found := condition(status, kind)) is not None and found.status == "True"


def since(status: Status, kind: ConditionType) -> datetime | None:
    """When the condition's status last changed."""
    return None if (found := condition(status, kind)) is None else found.last_transition_time


def condition(status: Status, kind: ConditionType) -> Condition | None:
    return next((each for each in status.conditions if each.type == kind), None)


def set_conditions(
    status: Status, now: datetime, generation: int, states: Mapping[ConditionType, ConditionState]
) -> Status:
    """The status with these conditions; a condition whose status does not change keeps its transition time."""
    by_type = {each.type: each for each in status.conditions}
    for kind, (true, reason, message) in states.items():
        before = by_type.get(kind)
        value = "True" if true else "False"
        same = before is not None and before.status == value
        by_type[kind] = Condition(
            type=kind,
            status=value,
            observed_generation=generation,
            last_transition_time=before.last_transition_time if before is not None and same else now,
            reason=reason or "Unknown",
            message=message,
        )
    return status.replace(conditions=[by_type[kind] for kind in ORDER if kind in by_type])


def phase(status: Status, *, starting: bool) -> Phase:
    """The phase that summarises the conditions. starting: the pods need nothing but time to run."""
    if is_true(status, "Failed"):
        return "Failed"
    if is_true(status, "Succeeded"):
        return "Succeeded"
    if is_true(status, "Suspended"):
        return "Suspended"
    if is_true(status, "Restarting"):
        return "Restarting"
    if is_true(status, "Running"):
        return "Running"
    return "Starting" if starting else "Pending"


def reason(status: Status) -> str | None:
    """Why the job is in its phase, in one CamelCase word; None while it starts, runs or has succeeded, as it should."""
    if status.phase == "Failed":
        return None if (failed := condition(status, "Failed")) is None else failed.reason
    if status.phase not in ("Pending", "Running", "Restarting"):
        return None
    ready, again = condition(status, "PodsReady"), condition(status, "Restarting")
    if ready is not None and ready.status != "True" and ready.reason not in ORDINARY:
        return ready.reason
    return again.reason if again is not None and again.status == "True" else None
