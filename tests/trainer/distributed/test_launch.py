"""`tailorpo run --processes 2`: real processes under torchrun's agent, and the exit code that comes out."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import checkpoint
from tailorpo_trainer.errors import ExitCode, StalledError
from tailorpo_trainer.spec.job import RunPolicy
from tailorpo_trainer.telemetry import termination
from tailorpo_trainer.training.launch import WorldLayout, _wait_for_address, _write_message, decide, launch

Make = Callable[..., dict[str, Any]]


def message(code: int, kind: str = "StalledError") -> dict[str, Any]:
    return {"error": {"class": kind, "text": "why", "exitCode": code}}


@pytest.mark.parametrize(("failed", "messages", "expected"), [
    ({}, {}, (0, 0)),
    ({}, {0: {}, 1: {"error": None}}, (0, 0)),
    ({1: 76}, {0: message(74), 1: message(76)}, (1, 76)),
    ({0: 74}, {0: message(74), 1: message(78)}, (1, 78)),
    ({0: 75, 1: 75}, {}, (0, 75)),
    ({1: 137}, {0: message(74)}, (1, 137)),
    ({1: 137}, {0: message(78)}, (0, 78)),
    ({1: 137}, {0: message(74), 1: {"phase": "Running"}}, (1, 137)),
    ({0: 1}, {1: message(74)}, (0, 1)),
    ({0: 139}, {1: message(70)}, (0, 139)),
    ({0: 0, 1: 75}, {}, (1, 75)),
    ({0: 1, 1: 71}, {}, (1, 71)),
    ({0: 143, 1: 130}, {}, (1, 130)),
    ({0: 134, 1: 137}, {}, (1, 137)),
    # The launcher killed it, since it did not stop when the watchdog of its peer had ended that one.
    ({0: 74, 1: 137}, {0: message(74, "NoProgressError"), 1: {"phase": "Running"}}, (0, 74)),
    ({0: 137, 1: 74}, {0: {}, 1: message(74, "NoProgressError")}, (1, 74)),
    ({1: 137, 2: 139}, {0: message(74, "NoProgressError")}, (2, 139)),
])  # fmt: skip
def test_the_code_that_explains_the_others_is_passed_on(
    failed: dict[int, int], messages: dict[int, dict[str, Any]], expected: tuple[int, int]
) -> None:
    rank, code, message_of_rank = decide(failed, messages)
    assert (rank, code) == expected
    assert message_of_rank == messages.get(rank, {})


RUNNING = {
    "name": "a",
    "phase": "Running",
    "step": 7,
    "etaSeconds": 9.0,
    "checkpoint": {"uri": "u", "step": 5, "time": "t"},
}
PEER = {
    "name": "a",
    "phase": "Failed",
    "step": 7,
    "error": {"class": "X", "text": "one\ntwo", "exitCode": 76, "rank": 1},
}


@pytest.mark.parametrize(("rank", "code", "messages", "phase", "text"), [
    (0, 0, {0: RUNNING}, "Succeeded", None),
    (1, 76, {0: RUNNING, 1: PEER}, "Failed", "one\ntwo"),
    (1, 137, {0: RUNNING, 1: RUNNING}, "Failed", "rank 1 was killed by SIGKILL and left no message"),
    (1, 75, {0: RUNNING, 1: {"phase": 3}}, "Stopped", "rank 1 ended with exit code 75 and left no message"),
])  # fmt: skip
def test_the_pod_s_last_word_is_how_far_the_first_rank_was_and_why_the_decisive_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, code: int, messages: Any, phase: str, text: str | None
) -> None:
    monkeypatch.setenv("TAILORPO_TERMINATION_LOG", str(tmp_path / "log"))
    _write_message(rank, code, messages)
    left = termination.read(tmp_path / "log")
    assert left is not None
    assert (left.phase, left.step, left.checkpoint and left.checkpoint.step) == (phase, 7, 5)
    assert left.eta_seconds is None
    assert (left.error and (left.error.text, left.error.exit_code, left.error.rank)) == (text and (text, code, rank))


def test_where_nobody_said_anything_it_is_said_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILORPO_TERMINATION_LOG", str(tmp_path / "log"))
    _write_message(0, 139, {})
    left = termination.read(tmp_path / "log")
    assert left is not None
    assert left.message == "rank 0 was killed by SIGSEGV and left no message"


def test_a_name_that_never_gets_an_address_is_named() -> None:
    with pytest.raises(StalledError, match=r"nowhere.invalid has no address after 0.1 s .*rendezvousTimeoutSeconds"):
        _wait_for_address("nowhere.invalid", 0.1)
    _wait_for_address("localhost", 0.1)


def test_machines_that_do_not_meet_are_told_where_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens there
        port = taken.getsockname()[1]
        with pytest.raises(StalledError) as caught:
            launch([], WorldLayout(1, nodes=2, node_rank=1, master_port=port), RunPolicy(rendezvous_timeout_seconds=1))
    where = f"the 2 nodes did not meet at 127.0.0.1:{port} within 1 s (spec.runPolicy.rendezvousTimeoutSeconds): "
    assert str(caught.value).startswith(where)
    reason = str(caught.value).removeprefix(where)
    assert reason
    assert reason.isprintable()
    assert ".cpp" not in reason


def test_a_layout_counts_the_processes_of_all_machines() -> None:
    assert WorldLayout(2, nodes=3).size == 6


@pytest.fixture
def job(document: Make, tmp_path: Path) -> Callable[..., list[str]]:
    """The command that runs a document, and where it writes."""

    def write(*options: str, **parts: Any) -> list[str]:
        values = document(**{"training": {"iterations": 3, "promptsPerIteration": 4}} | parts)
        (tmp_path / "job.json").write_text(json.dumps(values))
        return [
            sys.executable,
            "-m",
            "tailorpo_trainer",
            str(tmp_path / "job.json"),
            "--output",
            str(tmp_path / "out"),
            *options,
        ]

    return write


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, **options)


def test_stopped_it_says_so_and_goes_on_to_the_end(job: Callable[..., list[str]], tmp_path: Path) -> None:
    """SIGTERM to the launcher, as a pod gets it; then again, with torchrun itself."""
    command = job("--processes", "2", "--json", training={"iterations": 500, "promptsPerIteration": 4})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launched:
        assert launched.stdout is not None
        assert launched.stderr is not None
        for line in launched.stdout:
            if json.loads(line)["kind"] == "iteration":
                launched.send_signal(signal.SIGTERM)
                break
        stderr = launched.stderr.read()
        launched.stdout.read()
    assert launched.returncode == ExitCode.STOPPED, stderr
    assert "Traceback" not in stderr
    found = checkpoint.latest(checkpoint.open_store(tmp_path / "out"))
    assert found is not None
    done = found.step
    plain = job(training={"iterations": done + 1, "promptsPerIteration": 4})[3:]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tailorpo_trainer",
    ]
    ended = run([*torchrun, *plain])
    assert ended.returncode == 0, ended.stderr
    found = checkpoint.latest(checkpoint.open_store(tmp_path / "out"))
    assert found is not None
    assert found.step == done + 1


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_rank_that_is_frozen_is_named_and_the_end_is_a_stall(
    job: Callable[..., list[str]], tmp_path: Path, frozen: int
) -> None:
    """The launcher has to kill it, and its own SIGKILL is no cause."""
    policy = {"stallTimeoutSeconds": 10, "terminationGracePeriodSeconds": 11}
    command = job("--processes=2", "--json", training={"iterations": 500, "promptsPerIteration": 4}, runPolicy=policy)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launched:
        assert launched.stdout is not None
        for line in launched.stdout:
            if json.loads(line)["kind"] == "checkpoint":
                os.kill(rank_of(launched.pid, frozen), signal.SIGSTOP)
                break
        stderr = launched.communicate(timeout=110)[1]
    assert launched.returncode == ExitCode.STALLED, stderr
    assert f"rank {1 - frozen} of 2 ended first, with exit code 74" in stderr
    assert f"rank {frozen} did not stop when asked to, and was killed: it hung" in stderr
    progress = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert (progress["phase"], progress["error"]["exitCode"]) == ("Failed", 74)


def rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank of this launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no rank {rank} of {launcher}")


def test_between_two_machines_the_real_code_of_the_first_failure_comes_out(
    job: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Both machines on this one; nobody answers at the reward's endpoint."""
    with socket.socket() as closed, socket.socket() as free:
        closed.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        endpoint, port = (each.getsockname()[1] for each in (closed, free))
    rewards = [{"name": "http", "endpoints": [f"http://127.0.0.1:{endpoint}/"], "retries": 0}]
    nodes = [
        subprocess.Popen(
            job("--nodes=2", f"--node-rank={rank}", f"--master-port={port}", rewards=rewards),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TAILORPO_TERMINATION_LOG": str(tmp_path / f"log-{rank}")},
        )
        for rank in (0, 1)
    ]
    ended = [(node.communicate(timeout=110)[1], node.returncode) for node in nodes]
    assert ExitCode.UNAVAILABLE in {code for _, code in ended}, ended
    assert {code for _, code in ended} <= {ExitCode.UNAVAILABLE, ExitCode.STALLED}
    assert all("Traceback" not in stderr for stderr, _ in ended)
    assert any("ended first, with exit code 69" in stderr for stderr, _ in ended)
    for rank, (_, code) in enumerate(ended):
        left = termination.read(tmp_path / f"log-{rank}")
        assert left is not None
        assert (left.name, left.phase) == ("test", "Failed")
        assert left.error is not None
        assert (left.error.exit_code, left.error.rank) == (code, rank)


def test_samples_that_cannot_be_shared_are_refused_before_anything_starts(job: Callable[..., list[str]]) -> None:
    ended = run(job("--processes", "3"))
    assert ended.returncode == ExitCode.CONFIGURATION
    assert ended.stderr.count("error") == 1
    assert "4 samples an iteration" in ended.stderr
