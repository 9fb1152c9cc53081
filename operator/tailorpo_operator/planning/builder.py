"""A plan in the making: the inputs, and what was decided so far."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from tailorpo_operator.api import conditions
from tailorpo_operator.api.conditions import ConditionState
from tailorpo_operator.api.status_size import fitted
from tailorpo_operator.api.types import Attempt, ConditionType, Job
from tailorpo_operator.planning.actions import Create, Delete, Plan, RecordEvent
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.planning.observed import Observed
from tailorpo_trainer.spec.job import RunPolicy
from tailorpo_trainer.spec.progress import Progress


class PlanBuilder:
    """Made for one pass over one job."""

    def __init__(self, job: Job, seen: Observed, now: datetime, retries: Retries) -> None:
        self.job, self.observed, self.now, self.retries = job, seen, now, retries
        self.status = job.status
        self.create: list[Create] = []
        self.delete: list[Delete] = []
        self._announce: list[RecordEvent] = []
        self._looks: list[datetime] = []
        self._fresh = False

    @property
    def policy(self) -> RunPolicy:
        return self.job.spec.run_policy

    def plan(self) -> Plan:
        """What was decided. What needs a fresh look decides nothing."""
        if self._fresh:
            return Plan(self.job.status, fresh=True)
        return Plan(
            fitted(self.status),
            tuple(self.create),
            tuple(self._announce),
            tuple(self.delete),
            min(self._looks, default=None),
        )

    def update_status(self, **fields: Any) -> None:
        """Fields of the status."""
        self.status = self.status.replace(**fields)

    def attempt(self, attempt: Attempt) -> None:
        """What is known of the last attempt."""
        self.update_status(attempts=[*self.status.attempts[:-1], attempt])

    def conditions(self, **said: ConditionState) -> None:
        """Conditions by their types."""
        named = cast(dict[ConditionType, ConditionState], said)
        self.status = conditions.set_conditions(self.status, self.now, self.job.generation, named)

    def set_message(self, message: str, *, starting: bool) -> None:
        """The message for people, and the phase. starting: nothing keeps the pods from running but time."""
        phase = conditions.phase(self.status, starting=starting)
        self.update_status(message=message, phase=phase, observed_generation=self.job.generation)

    def observe_progress(self, told: Progress) -> None:
        """What the trainer says of itself, unless it cannot be: whoever answers in a pod may say anything."""
        with suppress(ValueError, ArithmeticError):
            self.status = self.status.with_progress(told)

    def record_event(self, kind: Literal["Normal", "Warning"], reason: str, message: str, about: int) -> None:
        """At most one event of a reason about the same: an attempt, a generation of the spec, or 0 for the job."""
        self._announce.append(RecordEvent(kind, reason, message or reason, f"{self.job.uid}/{about}/{reason}"))

    def passed(self, since: datetime, seconds: float) -> bool:
        """Whether so much time has gone by; if not, there will be a look when it has."""
        due = since + timedelta(seconds=seconds)
        if self.now >= due:
            return True
        self._looks.append(due)
        return False

    def requeue_with_backoff(self, since: datetime | None, least: float, most: float) -> None:
        """Look again after as long as it has lasted already, within bounds."""
        lasted = 0.0 if since is None else (self.now - since).total_seconds()
        self._looks.append(self.now + timedelta(seconds=min(max(lasted, least), most)))

    def require_fresh(self) -> bool:
        """Whether what comes must be decided on a fresh look, which this is not."""
        self._fresh = not self.observed.fresh
        return self._fresh
