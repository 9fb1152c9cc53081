"""How long to wait before the next attempt."""

from datetime import datetime, timedelta

import pytest

from tailorpo_operator.api.types import Attempt
from tailorpo_operator.planning.backoff import Retries
from tests.operator.stories import NOON, at, over

RETRIES = Retries(first=10, most=360, healthy=600)


def delays(*attempts: Attempt) -> list[float]:
    """After each of them."""
    return [RETRIES.delay(attempts[: place + 1]).total_seconds() for place in range(len(attempts))]


def short(number: int, reason: str = "InternalError") -> Attempt:
    return over(number, reason)


def long(number: int, start: datetime = NOON) -> Attempt:
    return over(number, start=start, end=start + timedelta(seconds=600))


def test_twice_as_long_each_time_but_not_for_ever() -> None:
    assert delays(*map(short, range(1, 10))) == [10, 20, 40, 80, 160, 320, 360, 360, 360]


def test_a_disruption_waits_too() -> None:
    assert delays(short(1, "Drained"), short(2, "NodeLost"), short(3)) == [10, 20, 40]


def test_a_healthy_attempt_starts_anew() -> None:
    assert delays(short(1), short(2), long(3), short(4), short(5)) == [10, 20, 10, 20, 40]


@pytest.mark.parametrize("planned", ["Suspended", "Extended"])
def test_an_end_that_was_wished_for_waits_for_nothing_and_counts_for_nothing(planned: str) -> None:
    assert delays(short(1), short(2, planned), short(3)) == [10, 0, 20]


def test_times_that_are_not_known_or_make_no_sense() -> None:
    assert delays(Attempt(number=1, reason="Error", end=at(1)), over(2, start=at(60), end=NOON)) == [10, 20]
