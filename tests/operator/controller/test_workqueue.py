"""The work queue, and the rate limit of requests. The clock is simulated: no test waits."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_operator.controller.workqueue import BUSY_RATE, LATEST_SECONDS, QUIET_SECONDS, Priority, WorkQueue
from tailorpo_operator.kube.rate_limit import RateLimit


class FakeTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to whatever comes next."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        self.set_timers()
        super()._run_once()  # type: ignore[misc]

    def set_timers(self) -> None:
        timers = [each for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        if not self._ready and timers:  # type: ignore[attr-defined]
            self.now = max(self.now, min(each.when() for each in timers))


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=FakeTime) as runner:
        runner.run(story())


def clock() -> float:
    return asyncio.get_running_loop().time()


async def nothing(awaitable: Awaitable[Any], seconds: float = 1e6) -> bool:
    """Whether it does not end by itself, however long one waits, or for so long."""
    try:
        await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        return True
    return False


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue()


def test_each_key_once_in_order(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for key in "abab":
            queue.add(key)
        assert len(queue) == 2
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert await nothing(queue.get())

    run(story)


def test_never_two_at_a_time_and_nothing_is_lost(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert await nothing(queue.get()), "a worker has it"
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert await nothing(queue.get())
        assert len(queue) == 0

    run(story)


def test_the_rest_of_new_jobs_is_done_when_no_more_arrive(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for key in "ab":
            queue.add(key)
        assert await queue.get() == "a"
        assert queue.defer("a"), "b waits"
        queue.add("a", Priority.LOW)
        queue.done("a")
        assert await queue.get() == "b"
        assert queue.defer("b"), "a was deferred a moment ago"
        queue.done("b")
        queue.add("b", Priority.LOW)
        assert await nothing(queue.get(), QUIET_SECONDS / 2)
        assert len(queue) == 2
        queue.add("c")
        assert await queue.get() == "c", "it creates pods"
        assert queue.defer("c")
        queue.done("c")
        assert [await queue.get(), await queue.get(), await queue.get()] == ["a", "b", "c"]
        assert clock() == QUIET_SECONDS, "one that arrives alone does not prolong it"

    run(story)


def test_what_cannot_wait_ends_a_deferral(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for key in "abc":
            queue.add(key)
        assert queue.defer(await queue.get())
        queue.add("a")  # while a worker has it
        queue.done("a")
        assert [await queue.get(), await queue.get(), await queue.get()] == ["b", "c", "a"]
        assert queue.defer("b")
        queue.done("b")
        queue.add("b")
        queue.add("b", Priority.LOW)
        assert await queue.get() == "b"
        assert clock() == 0
        queue.done("b")
        assert await nothing(queue.get()), "it comes once"

    run(story)


def test_a_low_priority_comes_after_a_high_one(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for key in "ab":
            queue.add(key, Priority.LOW)
        queue.add("c")
        queue.add("b")
        queue.add("b", Priority.LOW)
        assert len(queue) == 3
        assert [await queue.get(), await queue.get()] == ["c", "b"]
        queue.add("b", Priority.LOW)
        queue.done("b")
        assert [await queue.get(), await queue.get()] == ["a", "b"]

    run(story)


def test_a_deferred_key_has_a_low_priority_afterwards(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for key in "abc":
            queue.add(key)
        for _ in "abc":
            key = await queue.get()
            queue.defer(key)
            queue.done(key)
        await asyncio.sleep(2 * QUIET_SECONDS)
        queue.add("new")
        queue.add("b")
        assert await queue.get() == "new"
        assert [await queue.get(), await queue.get(), await queue.get()] == ["b", "a", "c"]

    run(story)


@pytest.mark.parametrize("deferred", [True, False])
def test_nobody_starves_while_others_always_wait(queue: WorkQueue[str], deferred: bool) -> None:
    async def story() -> None:
        queue.add("a", Priority.HIGH if deferred else Priority.LOW)
        queue.add("0")
        if deferred:
            assert await queue.get() == "a"
            assert queue.defer("a")
            queue.done("a")
        taken, number = "", 0
        while taken != "a":
            number += 1
            queue.add(f"{number}")
            taken = await queue.get()
            queue.defer(taken)
            await asyncio.sleep(0.1)
            queue.done(taken)
            assert clock() < LATEST_SECONDS + 1
        assert clock() > LATEST_SECONDS - 1

    run(story)


@pytest.mark.parametrize(("rate", "lasts"), [(2 * BUSY_RATE, True), (0.8 * BUSY_RATE, False)])
def test_many_events_of_new_jobs_prolong_it(queue: WorkQueue[str], rate: float, lasts: bool) -> None:
    """As of pods that Kubernetes creates; not if it creates them slowly, which may take an hour."""
    keys = [f"{number}" for number in range(20)]

    async def story() -> None:
        for key in keys:
            queue.add(key)
        for key in keys:
            assert await queue.get() == key
            queue.defer(key)
            queue.done(key)
        first = asyncio.create_task(queue.get())
        while clock() < LATEST_SECONDS / 3 and not first.done():
            queue.add(keys[-1], Priority.LOW)
            await asyncio.sleep(1 / rate)
        assert first.done() is not lasts
        await first
        assert clock() < LATEST_SECONDS / 3 + QUIET_SECONDS + 1

    run(story)


def test_of_many_new_jobs_all_get_their_pods_first(queue: WorkQueue[str]) -> None:
    """Of 2000 at 70 a second, which a worker takes as they arrive; all reports come soon after the last of them."""
    created, reported = dict[str, float](), dict[str, float]()

    async def story() -> None:
        working = asyncio.create_task(work(queue, created, reported))
        for number in range(2000):
            queue.add(f"{number}")
            await asyncio.sleep(1 / 70)
        arrived = clock()
        assert len(reported) < 0.05 * len(created), "only the first, before the queue is busy"
        await asyncio.sleep(2 * QUIET_SECONDS)
        assert created.keys() == reported.keys()
        assert max(reported.values()) < arrived + 1.1 * QUIET_SECONDS
        working.cancel()

    run(story)


def test_while_many_new_jobs_arrive_for_hours_each_is_reported(queue: WorkQueue[str]) -> None:
    created, reported = dict[str, float](), dict[str, float]()

    async def story() -> None:
        working = asyncio.create_task(work(queue, created, reported))
        for number in range(15_000):
            queue.add(f"{number}")
            queue.add(f"+{number}")
            await asyncio.sleep(0.05)
        working.cancel()

    run(story)
    assert len(reported) > 10_000
    assert max(time - created[key] for key, time in reported.items()) < LATEST_SECONDS + 1


async def work(queue: WorkQueue[str], created: dict[str, float], reported: dict[str, float]) -> None:
    """A worker that creates what a new job needs, and reports it at once or later."""
    while True:
        key = await queue.get()
        if key in created or not queue.defer(key):
            reported[key] = clock()
        created.setdefault(key, clock())
        queue.done(key)


def test_a_steady_trickle_is_reported_at_once(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        for number in range(5 * BUSY_RATE):
            queue.add(f"{number}")
            assert not queue.defer(await queue.get())
            queue.done(f"{number}")
            await asyncio.sleep(1.2 / BUSY_RATE)
        assert await nothing(queue.get()), "nothing was deferred"

    run(story)


def test_due_times(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        queue.add_after("late", 20)
        queue.add_after("soon", 10)
        queue.add_after("late", 30)  # no: a sooner one is set
        queue.add_after("moved", 40)
        queue.add_after("moved", 5)
        queue.add_after("past", -5)
        taken = []
        for _ in range(4):
            key = await queue.get()
            taken.append((key, clock()))
            queue.done(key)
        assert taken == [("past", 0), ("moved", 5), ("soon", 10), ("late", 20)]
        assert await nothing(queue.get())

    run(story)


def test_who_works_on_a_key_says_anew_when_to_look_again(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        queue.add_after("a", 10)
        queue.add("a")
        await queue.get()
        queue.add_after("a", 50)
        queue.done("a")
        assert await queue.get() == "a"
        assert clock() == 50

    run(story)


def test_due_while_it_is_worked_on(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        queue.add("a")
        await queue.get()
        queue.add_after("a", 10)
        await asyncio.sleep(20)
        assert len(queue) == 1
        queue.done("a")
        assert await queue.get() == "a"
        assert clock() == 20

    run(story)


def test_what_is_no_longer_due_does_not_pile_up(queue: WorkQueue[str]) -> None:
    """A job that trains for days is reconciled every few seconds, and each reconcile sets its deadline anew."""

    async def story() -> None:
        for turn in range(5000):
            queue.add("a")
            await queue.get()
            queue.add_after("a", 86_400 - turn)
            queue.done("a")
            await asyncio.sleep(0)
        assert len(asyncio.get_running_loop()._scheduled) <= 200  # type: ignore[attr-defined]
        assert await queue.get() == "a"
        assert clock() == 86_400 - 4999

    run(story)


def test_a_cancelled_worker_takes_nothing_with_it(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        worker = asyncio.create_task(queue.get())
        await asyncio.sleep(1)
        worker.cancel()
        queue.add("a")
        assert await queue.get() == "a"

    run(story)


def test_idle(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        await queue.idle()
        for key in "ab":
            queue.add(key)
        await queue.get()
        await queue.get()
        idle = asyncio.create_task(queue.idle())
        queue.done("a")
        await asyncio.sleep(1)
        assert not idle.done()
        queue.done("b")
        await idle

    run(story)


STEPS = ["add", "add low", "after", "get", "defer", "done"]
actions = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from("abc")), max_size=60)


@given(actions)
def test_whatever_happens_each_added_key_is_worked_on_after_it_was_added(steps: list[tuple[str, str]]) -> None:
    """So is each that was deferred; and no two workers have the same key."""

    async def story() -> None:
        queue: WorkQueue[str] = WorkQueue()
        owed, working = set[str](), set[str]()
        for step, key in steps:
            if step in ("add", "add low"):
                queue.add(key, Priority.LOW if "low" in step else Priority.HIGH)
                owed.add(key)
            elif step == "after":
                queue.add_after(key, 10)
            elif step == "get" and owed - working:
                taken = await queue.get()
                assert taken not in working
                owed.discard(taken)
                working.add(taken)
            elif step == "defer" and key in working and queue.defer(key):
                owed.add(key)
            elif step == "done" and key in working:
                queue.done(key)
                working.discard(key)
        for key in working:
            queue.done(key)
        while owed or queue:
            taken = await queue.get()
            owed.discard(taken)
            queue.done(taken)
        assert clock() <= LATEST_SECONDS

    run(story)


def test_requests_go_at_a_rate_after_a_burst() -> None:
    async def story() -> None:
        limit, taken = RateLimit(10, 5), []
        for _ in range(25):
            await limit.take()
            taken.append(clock())
        assert taken[:5] == [0.0] * 5
        assert taken[5:] == pytest.approx([0.1 * place for place in range(1, 21)])

    run(story)


def test_first_come_first_served() -> None:
    async def story() -> None:
        limit, order = RateLimit(1, 1), list[int]()

        async def take(number: int) -> None:
            await limit.take()
            order.append(number)

        await asyncio.gather(*map(take, range(10)))
        assert order == [*range(10)]
        assert clock() == 9

    run(story)


def test_what_may_wait_takes_only_what_is_left() -> None:
    async def story() -> None:
        limit = RateLimit(1, 2)
        assert [limit.try_take() for _ in range(3)] == [True, True, False]
        await asyncio.sleep(1)
        assert [limit.try_take() for _ in range(2)] == [True, False]
        await asyncio.sleep(1000)
        assert [limit.try_take() for _ in range(3)] == [True, True, False], "no more than a burst is saved up"

    run(story)
