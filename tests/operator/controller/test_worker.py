"""What fails is looked at again, for however long it fails."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tailorpo_operator.controller.worker import FIRST_RETRY, LAST_RETRY, Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.transport import RefusedError


class Impatient(WorkQueue[str]):
    """Time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def add_after(self, key: str, seconds: float) -> None:
        self.waits.append(seconds)
        self.add(key)


def run(look: Callable[[str], Awaitable[None]], acts: bool = True) -> Impatient:
    async def story() -> Impatient:
        queue = Impatient()
        worker = Worker(queue, look, acts=lambda: acts, about=lambda key: {"job": key})
        working = asyncio.create_task(worker.run())
        queue.add("a")
        while queue and not working.done():
            await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return queue

    return asyncio.run(story())


@pytest.mark.parametrize(("error", "told"), [
    (RefusedError(403, "Forbidden", "no"), ["WARNING"]),
    (ValueError("a mistake of ours"), ["ERROR"] * 2000),
])  # fmt: skip
def test_what_fails_for_days_is_tried_again(
    error: Exception, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0

    async def look(key: str) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2000:
            raise error

    with caplog.at_level(logging.INFO):
        waits = run(look).waits
    assert len(waits) == 2000
    assert (waits[0], waits[1], waits[-1]) == (FIRST_RETRY, 2 * FIRST_RETRY, LAST_RETRY)
    assert [record.levelname for record in caplog.records] == told
    assert all(record.__dict__["job"] == "a" for record in caplog.records)


def test_what_went_well_begins_anew() -> None:
    outcomes: list[Any] = [ValueError(), None, ValueError(), None]
    seen: list[str] = []

    async def story() -> list[float]:
        queue = Impatient()

        async def look(key: str) -> None:
            seen.append(key)
            if (outcome := outcomes.pop(0)) is not None:
                raise outcome

        working = asyncio.create_task(Worker(queue, look, acts=lambda: True, about=lambda key: {}).run())
        for _ in range(2):
            queue.add("a")
            while queue:
                await asyncio.sleep(0)
        working.cancel()
        return queue.waits

    assert asyncio.run(story()) == [FIRST_RETRY, FIRST_RETRY]
    assert seen == ["a"] * 4


def test_who_may_not_act_does_nothing() -> None:
    async def look(key: str) -> None:
        raise AssertionError("it must not")

    assert run(look, acts=False).waits == []
