"""Points in time at which a decision changes although nothing happens in the cluster."""

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Deadline:
    """A number of seconds after an instant."""

    since: datetime
    seconds: float

    @property
    def due(self) -> datetime:
        return self.since + timedelta(seconds=self.seconds)

    def passed(self, now: datetime) -> bool:
        return now >= self.due


def earliest(*times: datetime | None) -> datetime | None:
    """The first of the given times; None if all are None."""
    return min((time for time in times if time is not None), default=None)
