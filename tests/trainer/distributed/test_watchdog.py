"""A process that makes no progress ends, and one that does is left alone; the clock is the test's."""

import os
import threading

import pytest

from tailorpo_trainer.distributed.watchdog import LAUNCHER, watching
from tailorpo_trainer.errors import ExitCode


class Ending:
    """Stands for the end of the process, and for time."""

    def __init__(self) -> None:
        self.now, self.codes, self.ended = 0.0, list[int](), threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.ended.set()


@pytest.fixture
def end() -> Ending:
    return Ending()


def test_no_progress_ends_it_and_says_where_every_thread_stands(end: Ending, capfd: pytest.CaptureFixture[str]) -> None:
    with watching(0.04, end, lambda: end.now):
        end.now = 0.05
        assert end.ended.wait(30)
    assert end.codes == [ExitCode.STALLED]
    stderr = capfd.readouterr().err
    assert "rank 0 made no progress for 0.04 s (spec.runPolicy.stallTimeoutSeconds)" in stderr
    assert "test_no_progress_ends_it" in stderr


class ObservedClock:
    """The clock as the watchdog reads it, and a way to wait until it has."""

    def __init__(self, end: Ending) -> None:
        self.end, self.count = end, threading.Semaphore(0)

    def __call__(self) -> float:
        self.count.release()
        return self.end.now

    def wait(self, times: int) -> None:
        for _ in range(times):
            assert self.count.acquire(timeout=30)


def test_each_beat_begins_the_time_anew(end: Ending) -> None:
    observed_clock = ObservedClock(end)
    with watching(0.04, end, observed_clock) as beat:
        for _ in range(5):
            end.now += 0.03
            beat()
            observed_clock.wait(3)
    assert end.codes == []


def test_while_it_loads_more_time_is_allowed(end: Ending) -> None:
    observed_clock = ObservedClock(end)
    with watching(0.04, end, observed_clock, loading=10.0) as beat:
        end.now = 9.9
        observed_clock.wait(5)
        assert end.codes == []
        beat.begin()
        end.now += 0.05
        assert end.ended.wait(30)
    assert end.codes == [ExitCode.STALLED]


def test_it_does_not_outlive_its_launcher(end: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "1")
    with watching(0.04, end, lambda: end.now):
        assert end.ended.wait(30)
    assert end.codes == [ExitCode.INTERRUPTED]


def test_it_stays_while_its_launcher_is_there(end: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    observed_clock = ObservedClock(end)
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    with watching(0.04, end, observed_clock):
        observed_clock.wait(3)
    assert end.codes == []
