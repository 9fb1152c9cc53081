"""A reconcile that fails is retried, however long it fails."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tailorpo_operator.controller.worker import FIRST_RETRY, LAST_RETRY, Worker
from tailorpo_operator.controller.workqueue import WorkQueue
from tailorpo_operator.kube.transport import RefusedError


class Immediate(WorkQueue[str]):
    """Adds keys without their delay."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def add_after(self, key: str, seconds: float) -> None:
        self.waits.append(seconds)
        self.add(key)


def run(reconcile: Callable[[str], Awaitable[None]], may_act: bool = True) -> Immediate:
    async def story() -> Immediate:
        queue = Immediate()
        worker = Worker(queue, reconcile, may_act=lambda: may_act, log_fields=lambda key: {"job": key})
        working = asyncio.create_task(worker.run())
        queue.add("a")
        while queue and not working.done():
            await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return queue

    return asyncio.run(story())


@pytest.mark.parametrize(("error", "levels"), [
    (RefusedError(403, "Forbidden", "no"), ["WARNING"]),
    (ValueError("a mistake of ours"), ["ERROR"] * 2000),
])  # fmt: skip
def test_what_fails_for_days_is_tried_again(
    error: Exception, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0

    async def reconcile(key: str) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2000:
            raise error.with_traceback(None)  # of one traceback, which would grow with each raise

    with caplog.at_level(logging.INFO):
        waits = run(reconcile).waits
    assert len(waits) == 2000
    assert (waits[0], waits[1], waits[-1]) == (FIRST_RETRY, 2 * FIRST_RETRY, LAST_RETRY)
    assert [record.levelname for record in caplog.records] == levels
    assert all(record.__dict__["job"] == "a" for record in caplog.records)


def test_what_went_well_begins_anew() -> None:
    outcomes: list[Any] = [ValueError(), None, ValueError(), None]
    reconciled: list[str] = []

    async def story() -> list[float]:
        queue = Immediate()

        async def reconcile(key: str) -> None:
            reconciled.append(key)
            if (outcome := outcomes.pop(0)) is not None:
                raise outcome

        working = asyncio.create_task(Worker(queue, reconcile, may_act=lambda: True, log_fields=lambda key: {}).run())
        for _ in range(2):
            queue.add("a")
            while queue:
                await asyncio.sleep(0)
        working.cancel()
        return queue.waits

    assert asyncio.run(story()) == [FIRST_RETRY, FIRST_RETRY]
    assert reconciled == ["a"] * 4


def test_who_may_not_act_does_nothing() -> None:
    async def reconcile(key: str) -> None:
        raise AssertionError("it must not")

    assert run(reconcile, may_act=False).waits == []
