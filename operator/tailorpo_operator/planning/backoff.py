"""How long to wait before the next attempt."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tailorpo_operator.api.types import Attempt

PLANNED = ("Suspended", "Extended", "SpecChanged")
"""Reasons of ends that the user asked for."""


@dataclass(frozen=True)
class Retries:
    """Backoff as Kubernetes does it before it creates a Job's pod again: the delay doubles up to a maximum.

    Attributes:
        first: seconds before the second attempt.
        most: seconds at most.
        healthy: an attempt that lasted so many seconds resets the backoff.
        lost: seconds after its grace period until a pod that does not end counts as lost.
    """

    first: float = 10.0
    most: float = 360.0
    healthy: float = 600.0
    lost: float = 30.0

    def delay(self, attempts: Sequence[Attempt]) -> timedelta:
        """The delay after these attempts, the last of which has just ended."""
        short = 0
        for attempt in reversed(attempts):
            if attempt.reason in PLANNED:
                continue
            short += 1
            if attempt.start and attempt.end and (attempt.end - attempt.start).total_seconds() >= self.healthy:
                break
        if attempts[-1].reason in PLANNED:
            return timedelta()
        return timedelta(seconds=min(self.first * 2.0 ** (short - 1), self.most))


AS_KUBERNETES = Retries()
