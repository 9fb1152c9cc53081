"""Contenders that are measured together: processes that are paused and resumed in turns."""

import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.race import TIME_SLICE, Contender, Track, race


def counting(track: Track, log: Path, name: str, until: int) -> None:
    """Writes a line for each number."""
    track.ready([])
    with log.open("a", buffering=1) as lines:
        for number in range(until):
            lines.write(f"{name}{number}\n")
        track.done(until)
        lines.write(f"{name} alone\n")
    track.done("after")


def busy(track: Track, log: Path, name: str) -> None:
    """Writes its name repeatedly, for one second of CPU time."""
    track.ready([])
    begun = time.process_time()
    with log.open("a", buffering=1) as lines:
        while time.process_time() < begun + 1:
            lines.write(f"{name}\n")
            sum(range(10_000))
    track.done(None)


def failing(track: Track) -> None:
    track.ready([])
    raise SystemExit(3)


def waiting(track: Track, log: Path) -> None:
    try:
        track.ready([])
        signal.pause()
    except KeyboardInterrupt:
        log.write_text("told to end")


def test_all_of_a_lane_run_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Contender(counting, log, "a", 3) as a, Contender(counting, log, "b", 4) as b:
        race([a, b])
        assert log.read_text().split() == ["a0", "a1", "a2", "b0", "b1", "b2", "b3"]
        assert (a.result, b.result) == (3, 4)
        assert a.go_on() == "after"
        assert log.read_text().splitlines()[-1] == "a alone", "b is paused"
        b.go_on()


def test_lanes_run_in_turns_and_only_what_is_theirs_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Contender(busy, log, "a") as a, Contender(busy, log, "b") as b:
        race([a], [b])
        names = log.read_text().split()
        turns = 1 + sum(before != after for before, after in pairwise(names))
        assert turns > 2
        assert turns <= (a.seconds + b.seconds) / TIME_SLICE + 2, "one ran in the other's turn"


def test_one_that_fails_ends_the_race_for_all(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(EOFError), Contender(waiting, log) as patient, Contender(failing) as other:
        race([patient], [other])
    assert log.read_text() == "told to end"
