"""A plan in the making: the inputs, and what was decided so far."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from tailorpo_operator.api import conditions
from tailorpo_operator.api.conditions import Holds
from tailorpo_operator.api.status_size import fitted
from tailorpo_operator.api.types import Attempt, ConditionType, Job
from tailorpo_operator.planning.actions import Announce, Create, Delete, Plan
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.planning.observed import Children
from tailorpo_trainer.spec.job import RunPolicy
from tailorpo_trainer.spec.progress import Progress


class Draft:
    """Made for one pass over one job."""

    def __init__(self, job: Job, seen: Children, now: datetime, retries: Retries) -> None:
        self.job, self.seen, self.now, self.retries = job, seen, now, retries
        self.status = job.status
        self.create: list[Create] = []
        self.delete: list[Delete] = []
        self._announce: list[Announce] = []
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

    def change(self, **fields: Any) -> None:
        """Fields of the status."""
        self.status = self.status.having(**fields)

    def attempt(self, attempt: Attempt) -> None:
        """What is known of the last attempt."""
        self.change(attempts=[*self.status.attempts[:-1], attempt])

    def conditions(self, **said: Holds) -> None:
        """Conditions by their types."""
        named = cast(dict[ConditionType, Holds], said)
        self.status = conditions.having(self.status, self.now, self.job.generation, named)

    def say(self, message: str, *, starting: bool) -> None:
        """The message for people, and the phase. starting: nothing keeps the pods from running but time."""
        phase = conditions.phase(self.status, starting=starting)
        self.change(message=message, phase=phase, observed_generation=self.job.generation)

    def see(self, told: Progress) -> None:
        """What the trainer says of itself, unless it cannot be: whoever answers in a pod may say anything."""
        with suppress(ValueError, ArithmeticError):
            self.status = self.status.seeing(told)

    def announce(self, kind: Literal["Normal", "Warning"], reason: str, message: str, about: int) -> None:
        """At most one event of a reason about the same: an attempt, a generation of the spec, or 0 for the job."""
        self._announce.append(Announce(kind, reason, message or reason, f"{self.job.uid}/{about}/{reason}"))

    def passed(self, since: datetime, seconds: float) -> bool:
        """Whether so much time has gone by; if not, there will be a look when it has."""
        due = since + timedelta(seconds=seconds)
        if self.now >= due:
            return True
        self._looks.append(due)
        return False

    def look_after(self, since: datetime | None, least: float, most: float) -> None:
        """Look again after as long as it has lasted already, within bounds."""
        lasted = 0.0 if since is None else (self.now - since).total_seconds()
        self._looks.append(self.now + timedelta(seconds=min(max(lasted, least), most)))

    def need_fresh(self) -> bool:
        """Whether what comes must be decided on a fresh look, which this is not."""
        self._fresh = not self.seen.fresh
        return self._fresh
