"""The queue of jobs to look at, and how fast requests may go. Time is a test's own: nothing waits."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_operator.controller.workqueue import (
    BUSY,
    CALM,
    CALM_EACH,
    CALM_MOST,
    DRAINED,
    DRIP,
    MANY,
    PATIENCE,
    WorkQueue,
)
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
        assert await nothing(queue.get()), "somebody works on it"
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert await nothing(queue.get())
        assert len(queue) == 0

    run(story)


def test_in_a_crowd_who_is_put_off_comes_when_it_is_over(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            for key in "ab":
                queue.add(key)
            assert await queue.get() == "a"
            assert queue.put_off("a"), "b waits"
            queue.add("a", can_wait=True)
            queue.done("a")
            assert await queue.get() == "b"
            assert queue.put_off("b"), "a was put off just now"
            queue.done("b")
            queue.add("b", can_wait=True)
            assert await nothing(queue.get(), CALM / 2)
            assert len(queue) == 2
            queue.add("c")
            assert await queue.get() == "c", "it goes first"
            assert queue.put_off("c")
            queue.done("c")
            assert [await queue.get(), await queue.get(), await queue.get()] == ["a", "b", "c"]
            assert clock() == pytest.approx(CALM + 3 * CALM_EACH), "one that comes alone prolongs nothing"

    run(story)


def test_who_is_put_off_comes_at_once_for_what_cannot_wait(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            for key in "abc":
                queue.add(key)
            assert queue.put_off(await queue.get())
            queue.add("a")  # while it is worked on
            queue.done("a")
            assert [await queue.get(), await queue.get(), await queue.get()] == ["b", "c", "a"]
            assert queue.put_off("b")
            queue.done("b")
            queue.add("b")
            queue.add("b")
            begun = clock()
            assert await queue.get() == "b"
            assert clock() == begun
            queue.done("b")
            assert await nothing(queue.get()), "it comes once"

    run(story)


def test_who_is_put_off_comes_at_last_even_if_the_crowd_stays(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            for key in "abc":
                queue.add(key)
            for key in "ab":
                assert queue.put_off(await queue.get())
                queue.done(key)
            begun, seen = clock(), []
            while clock() - begun < PATIENCE:
                seen.append(await queue.get())
                queue.put_off(seen[-1])
                await asyncio.sleep(0.5 / MANY)
                queue.done(seen[-1])
                queue.add(f"{len(seen)}")
            assert not {"a", "b"} & {*seen}
            first = [await queue.get(), await queue.get()]
            assert "a" in first
            assert "b" not in first, "one after the other"
            queue.put_off(first[0])
            await asyncio.sleep(2 * DRIP)
            assert await queue.get() == "b"

    run(story)


@pytest.mark.parametrize(("rate", "lasts"), [(1.2 * BUSY, True), (0.8 * BUSY, False)])
def test_much_news_of_a_crowd_prolongs_it(queue: WorkQueue[str], rate: float, lasts: bool) -> None:
    """As of pods that Kubernetes makes; not if it makes them slowly, which may take an hour."""
    keys = [f"{number}" for number in range(2 * MANY)]

    async def story() -> None:
        async with keeping_time(queue):
            for key in keys:
                queue.add(key)
            for _ in keys:
                key = await queue.get()
                assert queue.put_off(key)
                queue.done(key)
            over = CALM_MOST
            while lasts and clock() < PATIENCE / 2:
                queue.add(keys[0], can_wait=True)
                over = clock() + CALM_MOST
                assert await nothing(queue.get(), 1 / rate)
            coming = asyncio.create_task(queue.get())
            while not coming.done():
                queue.add(keys[0], can_wait=True)
                await asyncio.sleep(1 / min(rate, 0.8 * BUSY))
            assert clock() < over
            assert [await coming, *[await queue.get() for _ in keys[1:]]] == keys

    run(story)


def test_a_crowd_that_stays_is_told_of_within_minutes(queue: WorkQueue[str]) -> None:
    """Twenty new ones a second, for forty minutes."""
    made, late = dict[str, float](), dict[str, float]()

    async def work() -> None:
        while True:
            key = await queue.get()
            if key in made:
                late[key] = clock() - made[key]
            else:
                made[key] = clock()
                queue.put_off(key)
            queue.done(key)

    async def story() -> None:
        async with keeping_time(queue):
            working = asyncio.create_task(work())
            for number in range(20 * 2400):
                queue.add(f"{number}")
                await asyncio.sleep(0.05)
            working.cancel()

    run(story)
    assert len(late) > 30_000
    assert PATIENCE < max(late.values()) < PATIENCE + DRAINED


def test_who_was_put_off_lets_others_go_first_even_then(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            for key in "abc":
                queue.add(key)
            for _ in "abc":
                key = await queue.get()
                queue.put_off(key)
                queue.done(key)
            await asyncio.sleep(2 * CALM)
            queue.add("new")
            queue.add("b")
            assert await queue.get() == "new"
            assert [await queue.get(), await queue.get()] == ["b", "a"]

    run(story)


def test_a_steady_trickle_is_no_crowd(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            for number in range(5 * MANY):
                queue.add(f"{number}")
                assert not queue.put_off(await queue.get())
                queue.done(f"{number}")
                await asyncio.sleep(1.2 / MANY)
            for number in range(MANY):
                queue.add(f"more-{number}")
                crowd = queue.put_off(await queue.get())
                queue.done(f"more-{number}")
            assert crowd

    run(story)


def test_nobody_is_put_off_for_nobody(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            queue.add("a")
            assert not queue.put_off(await queue.get())
            queue.done("a")
            await asyncio.sleep(CALM)
            queue.add("b")
            assert not queue.put_off(await queue.get())
            queue.done("b")
            assert await nothing(queue.get())

    run(story)


def test_due_times(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
            queue.add_after("late", 20)
            queue.add_after("soon", 10)
            queue.add_after("late", 30)  # no: a sooner one is set
            queue.add_after("moved", 40)
            queue.add_after("moved", 5)
            queue.add_after("past", -5)
            seen = []
            for _ in range(4):
                key = await queue.get()
                seen.append((key, clock()))
                queue.done(key)
            assert seen == [("past", 0), ("moved", 5), ("soon", 10), ("late", 20)]
            assert await nothing(queue.get())

    run(story)


def test_who_works_on_a_key_says_anew_when_to_look_again(queue: WorkQueue[str]) -> None:
    async def story() -> None:
        async with keeping_time(queue):
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
        async with keeping_time(queue):
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
    """A job that trains for days is looked at every few seconds, and each look sets its deadline anew."""

    async def story() -> None:
        for turn in range(5000):
            queue.add("a")
            await queue.get()
            queue.add_after("a", 86_400 - turn)
            queue.done("a")
        assert len(queue._heap) <= 200
        async with keeping_time(queue):
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


actions = st.lists(st.tuples(st.sampled_from(["add", "after", "get", "done"]), st.sampled_from("abc")), max_size=60)


@given(actions)
def test_whatever_happens_each_added_key_is_worked_on_after_it_was_added(steps: list[tuple[str, str]]) -> None:
    async def story() -> None:
        queue: WorkQueue[str] = WorkQueue()
        owed, working = set[str](), set[str]()
        for step, key in steps:
            if step == "add":
                queue.add(key)
                owed.add(key)
            elif step == "after":
                queue.add_after(key, 10)
            elif step == "get" and owed - working:
                taken = await queue.get()
                assert taken not in working
                owed.discard(taken)
                working.add(taken)
            elif step == "done" and key in working:
                queue.done(key)
                working.discard(key)
        for key in working:
            queue.done(key)
        while owed:
            taken = await queue.get()
            owed.remove(taken)
            queue.done(taken)
        assert len(queue) == 0

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


class keeping_time:  # noqa: N801 (reads as what it does)
    """Within `with`, what is due is added."""

    def __init__(self, queue: WorkQueue[str]) -> None:
        self._queue = queue

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._queue.keep_time())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
