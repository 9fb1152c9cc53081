"""The cache of the test cluster's builds: builds in use are kept, those unused for long are deleted."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import build

Make = Callable[[int], Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "KEPT", 2)
    return tmp_path / "tailorpo" / "cluster"


@pytest.fixture
def make(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(number): the result of `binaries` for lock files with that key; nothing is compiled."""

    def compiled(go: str, programs: build.Programs, folder: Path, *_: Any) -> None:
        (folder / "etcd").touch()

    def called(number: int) -> Path:
        monkeypatch.setattr(build, "_key", lambda *_: f"{number:016x}")
        return build.binaries(report=lambda _: None)

    monkeypatch.setattr(build, "_build", compiled)
    return called


def unused(folder: Path, days: float) -> None:
    """Set the time of the last use to so many days ago."""
    then = time.time() - days * 86_400
    os.utime(folder, (then, then))


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def old_builds(cache: Path, *numbers: int, days: float) -> None:
    for number in numbers:
        (cache / f"{number:016x}").mkdir(parents=True)
        unused(cache / f"{number:016x}", days + number / 1000)


def test_what_nobody_has_used_for_long_goes_when_something_is_built(cache: Path, make: Make) -> None:
    old_builds(cache, 1, 2, 3, days=31)
    old_builds(cache, 4, days=29)
    for name in ("5" * 16 + ".build-abandoned", "runc"):
        (cache / name).mkdir()
        unused(cache / name, 40)
    assert make(6) == cache / f"{6:016x}"
    assert left(cache) == {f"{4:016x}", f"{6:016x}", "runc"}


def test_the_newest_two_stay_however_old(cache: Path, make: Make) -> None:
    old_builds(cache, 1, 2, days=400)
    make(3)
    assert left(cache) == {f"{1:016x}", f"{3:016x}"}
    make(3)
    assert left(cache) == {f"{1:016x}", f"{3:016x}"}


def test_what_is_found_counts_as_used(cache: Path, make: Make) -> None:
    old_builds(cache, 1, 2, 3, days=31)
    make(3)
    assert time.time() - (cache / f"{3:016x}").stat().st_mtime < 86_400
    assert left(cache) == {f"{number:016x}" for number in (1, 2, 3)}


def test_what_another_process_runs_from_stays(cache: Path, make: Make) -> None:
    old_builds(cache, 1, 2, days=31)
    program = (
        f"import sys; from pathlib import Path; from tests.cluster import build; build._hold(Path({str(cache)!r}) / "
        f"{f'{1:016x}'!r}); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"held\n"
        unused(cache / f"{1:016x}", 90)
        for number in (3, 4):
            make(number)
        assert left(cache) == {f"{number:016x}" for number in (1, 3, 4)}
    make(5)
    assert left(cache) == {f"{number:016x}" for number in (3, 4, 5)}


def test_what_was_deleted_while_one_waited_for_it_is_built_again(cache: Path, make: Make) -> None:
    folder = make(1)
    folder.rename(cache / "gone")
    assert not build._hold(folder)
    assert make(1) == folder
    assert (folder / "etcd").exists()
