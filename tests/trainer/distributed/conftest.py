"""Several processes of one run, forked from a process that has torch in memory already."""

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SECONDS = 60
"""Seconds after which a test's processes are killed, since they hang."""


class Ended(NamedTuple):
    """How one process ended. `stderr`: what it wrote there."""

    code: int
    value: Any
    stderr: str
    seconds: float


class Processes:
    """Forked processes; `pids` are theirs, by rank."""

    def __init__(self, count: int, work: Callable[[int], Any], folder: Path) -> None:
        self.folder, self.begun = folder, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.pids = [self._fork(rank, count, self.port, work) for rank in range(count)]

    def _fork(self, rank: int, count: int, port: int, work: Callable[[int], Any]) -> int:
        pid = os.fork()
        if pid:
            return pid
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = 70
        with (self.folder / f"{rank}.stderr").open("w") as stderr:
            os.dup2(stderr.fileno(), 2)
            sys.stderr = stderr
            try:
                value = work(rank)
                (self.folder / f"{rank}.json").write_text(json.dumps(value))
                code = 0
            except Exception as error:
                code = int(getattr(error, "exit_code", 70))
                traceback.print_exc(file=stderr)
            finally:
                stderr.flush()
                os._exit(code)

    def wait(self) -> list[Ended]:
        """How each ended, by rank."""
        codes: dict[int, tuple[int, float]] = {}
        deadline = self.begun + SECONDS
        while len(codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in codes:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        codes[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - self.begun
                    elif time.monotonic() > deadline:
                        os.kill(pid, 9)
            time.sleep(0.01)
        return [Ended(codes[rank][0], self._value(rank), self._stderr(rank), codes[rank][1]) for rank in sorted(codes)]

    def _value(self, rank: int) -> Any:
        path = self.folder / f"{rank}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _stderr(self, rank: int) -> str:
        return (self.folder / f"{rank}.stderr").read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Processes]]:
    """start(count, work): `work(rank)` in that many processes, which find each other as under torchrun."""
    groups: list[Processes] = []

    def begin(count: int, work: Callable[[int], Any]) -> Processes:
        groups.append(Processes(count, work, tmp_path / f"group-{len(groups)}"))
        return groups[-1]

    yield begin
    for pid in (pid for group in groups for pid in group.pids):
        with suppress(ProcessLookupError, ChildProcessError):  # nothing outlives a test that failed
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, 9)
                os.waitpid(pid, 0)


@pytest.fixture
def run_all(start: Callable[..., Processes]) -> Callable[..., list[Any]]:
    """run_all(count, work): what each process returned; all must have ended with 0."""

    def run(count: int, work: Callable[[int], Any]) -> list[Any]:
        ended = start(count, work).wait()
        assert [each.code for each in ended] == [0] * count, "\n".join(each.stderr for each in ended)
        return [each.value for each in ended]

    return run
