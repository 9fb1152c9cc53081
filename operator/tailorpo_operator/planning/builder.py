"""A plan under construction: its inputs, and what the phases have decided so far."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from tailorpo_operator.api import conditions
from tailorpo_operator.api.conditions import ConditionState
from tailorpo_operator.api.status_size import shrink
from tailorpo_operator.api.types import Attempt, ConditionType, Job
from tailorpo_operator.planning.actions import Create, Delete, Plan, RecordEvent
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.planning.deadline import Deadline, earliest
from tailorpo_operator.planning.observed import Observed
from tailorpo_trainer.spec.job import RunPolicy
from tailorpo_trainer.spec.progress import Progress

COMPLETED = ("Completed", "Extended")
"""How an attempt ends that has a result."""


class PlanBuilder:
    """Serves one reconcile of one job. Its methods are commands: questions take no builder, or read its attributes."""

    def __init__(self, job: Job, observed: Observed, now: datetime, retries: Retries) -> None:
        self.job, self.observed, self.now, self.retries = job, observed, now, retries
        self.status = job.status
        self.create: list[Create] = []
        self.delete: list[Delete] = []
        self._events: list[RecordEvent] = []
        self._requeue_at: datetime | None = None
        self._fresh_read = False

    @property
    def run_policy(self) -> RunPolicy:
        return self.job.spec.run_policy

    def plan(self) -> Plan:
        """What was decided. Nothing is decided if a fresh read is needed first."""
        if self._fresh_read:
            return Plan(self.job.status, fresh=True)
        status = self.status.replace(reason=conditions.reason(self.status))
        if not self._has_result():
            status = status.replace(adapter=None)
        return Plan(shrink(status), tuple(self.create), tuple(self._events), tuple(self.delete), self._requeue_at)

    def _has_result(self) -> bool:
        """Whether the status may name an adapter: anything may be said by a pod that fails."""
        last = self.status.attempts[-1].reason if self.status.attempts else None
        return conditions.is_true(self.status, "Succeeded") or last in COMPLETED

    def update_status(self, **fields: Any) -> None:
        """Sets fields of the status."""
        self.status = self.status.replace(**fields)

    def update_attempt(self, attempt: Attempt) -> None:
        """Replaces the last attempt of the status."""
        self.update_status(attempts=[*self.status.attempts[:-1], attempt])

    def set_conditions(self, **states: ConditionState) -> None:
        """Sets conditions, given by their types."""
        by_type = cast(dict[ConditionType, ConditionState], states)
        self.status = conditions.set_conditions(self.status, self.now, self.job.generation, by_type)

    def clear_conditions(self, reason: str, *types: ConditionType, message: str = "") -> None:
        """Sets conditions to False for one reason."""
        self.set_conditions(**dict.fromkeys(types, ConditionState(False, reason, message)))

    def set_message(self, message: str, *, starting: bool) -> None:
        """Sets the message for users, and the phase. starting: the pods need nothing but time to run."""
        phase = conditions.phase(self.status, starting=starting)
        self.update_status(message=message, phase=phase, observed_generation=self.job.generation)

    def observe_progress(self, progress: Progress) -> None:
        """Copies the trainer's progress into the status. Impossible values are ignored: a pod may send anything."""
        with suppress(ValueError, ArithmeticError):
            self.status = self.status.with_progress(progress)

    def record_event(self, kind: Literal["Normal", "Warning"], reason: str, message: str, about: int) -> None:
        """Records at most one event of a reason about one number: an attempt, a generation of the spec, or 0."""
        self._events.append(RecordEvent(kind, reason, message or reason, f"{self.job.uid}/{about}/{reason}"))

    def requeue_at(self, due: datetime | None) -> None:
        """Reconciles again at that time, or earlier if another call asks for it. None: this call asks for nothing."""
        self._requeue_at = earliest(self._requeue_at, due)

    def requeue_unless_passed(self, deadline: Deadline) -> None:
        """Reconciles again when the deadline passes."""
        if not deadline.passed(self.now):
            self.requeue_at(deadline.due)

    def requeue_with_backoff(self, since: datetime | None, least: float, most: float) -> None:
        """Reconciles again after as many seconds as have passed since then, within the bounds."""
        lasted = 0.0 if since is None else (self.now - since).total_seconds()
        self.requeue_at(self.now + timedelta(seconds=min(max(lasted, least), most)))

    def request_fresh_read(self) -> None:
        """Discards the plan: the reconciler reads the API server, and plans again from what it has read."""
        self._fresh_read = True
