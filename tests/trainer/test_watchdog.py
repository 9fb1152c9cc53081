"""A process that makes no progress ends, and one that does is left alone; the clock is the test's."""

import os
import threading
from collections.abc import Callable

import pytest

from tailorpo_trainer.exits import ExitCode
from tailorpo_trainer.watchdog import LAUNCHER, watching


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
    said = capfd.readouterr().err
    assert "rank 0 made no progress for 0.04 s (spec.runPolicy.stallTimeoutSeconds)" in said
    assert "test_no_progress_ends_it" in said


def test_each_beat_begins_the_time_anew(end: Ending) -> None:
    looked = threading.Semaphore(0)

    def clock() -> float:
        looked.release()
        return end.now

    with watching(0.04, end, clock) as beat:
        for _ in range(5):
            end.now += 0.03
            beat()
            for _ in range(3):
                assert looked.acquire(timeout=30)
    assert end.codes == []


@pytest.mark.parametrize(
    ("launcher", "codes"), [(lambda: "1", [ExitCode.INTERRUPTED]), (lambda: str(os.getppid()), [])]
)
def test_it_does_not_outlive_its_launcher(
    end: Ending, monkeypatch: pytest.MonkeyPatch, launcher: Callable[[], str], codes: list[int]
) -> None:
    monkeypatch.setenv(LAUNCHER, launcher())
    with watching(4, end, lambda: end.now):
        end.ended.wait(30 if codes else 1.5)
    assert end.codes == codes
