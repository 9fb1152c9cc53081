"""Asked to stop: by whom, when, how often, and what is left."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import checkpoint, models
from tailorpo_trainer.checkpoint.storage.folder import FolderStore
from tailorpo_trainer.distributed.signals import Stop, StopRequested
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ExitCode, StoppedError
from tailorpo_trainer.evaluation import measurement
from tailorpo_trainer.results import ownership
from tailorpo_trainer.rewards import colourfulness
from tailorpo_trainer.rollout import trajectories
from tailorpo_trainer.training import loop

Make = Callable[..., dict[str, Any]]


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers() -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks(number: signal.Signals) -> None:
    with Stop().listening() as stop:
        stop.check()
        send(number)
        assert stop.requested == number.name
        with pytest.raises(StopRequested):
            stop.check()
    assert number.name in str(stop.error(1, 3))


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not() -> None:
    for first in (signal.SIGINT, signal.SIGTERM):
        with Stop().listening() as stop:
            send(first)
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            assert stop.requested == first.name
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)


def test_at_once_a_signal_ends_a_wait() -> None:
    with Stop().listening() as stop:
        threading.Timer(0.1, send, [signal.SIGTERM]).start()
        with pytest.raises(StopRequested), stop.at_once():
            threading.Event().wait(300)
        with pytest.raises(StopRequested), stop.at_once():  # and so does one that came before
            raise AssertionError("not reached")


def test_no_except_exception_swallows_it() -> None:
    """A reward may try again after any error."""

    def tries_again() -> None:
        while True:
            with suppress(Exception):
                send(signal.SIGTERM)

    with Stop().listening() as stop, stop.at_once(), pytest.raises(StopRequested):
        tries_again()


def test_a_lost_terminal_is_no_reason_to_stop() -> None:
    with Stop().listening() as stop:
        send(signal.SIGHUP)
        assert stop.requested is None


@pytest.mark.parametrize(
    ("number", "done", "code", "text"),
    [
        (signal.SIGINT, 3, ExitCode.STOPPED, "stopped by SIGINT after iteration 3 of 9; the same command goes on from"),
        (signal.SIGINT, 0, ExitCode.INTERRUPTED, "stopped by SIGINT before the first iteration of 9 was done: there"),
        (signal.SIGTERM, 0, ExitCode.STOPPED, "stopped by SIGTERM before the first iteration of 9 was done: there"),
        (signal.SIGINT, None, ExitCode.INTERRUPTED, "stopped by SIGINT while it was loading: there was nothing to"),
        (signal.SIGTERM, None, ExitCode.STOPPED, "stopped by SIGTERM while it was loading: there was nothing to"),
    ],
)
def test_what_a_stop_says(number: signal.Signals, done: int | None, code: int, text: str) -> None:
    with Stop().listening() as stop:
        send(number)
    error = stop.error(done, 9)
    assert error.exit_code == code
    assert str(error).startswith(text)


def test_a_silent_reward_is_left_at_once(document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state before the iteration is saved, as at any other stop."""
    metrics = tmp_path / "metrics.jsonl"

    def wait(self: Any, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if metrics.exists() and '"iteration"' in metrics.read_text():  # the second iteration
            threading.Timer(0.1, send, [signal.SIGTERM]).start()
            threading.Event().wait(300)
        return images.mean((1, 2, 3))

    monkeypatch.setattr(colourfulness.Colourfulness, "__call__", wait)
    with pytest.raises(StoppedError, match=r"SIGTERM after iteration 1 of 3"):
        loop.run(parse(document(evaluation={"everyIterations": 0})), tmp_path, display="quiet")
    assert newest(tmp_path) == 1


def test_off_the_main_thread_nothing_is_taken() -> None:
    found: list[Any] = []

    def work() -> None:
        with Stop().listening() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def newest(folder: Path) -> int | None:
    found = checkpoint.latest(checkpoint.open_store(folder))
    return None if found is None else found.step


def weights(folder: Path) -> dict[str, Any]:
    found = checkpoint.latest(checkpoint.open_store(folder))
    assert found is not None
    return found.tensors("adapter")


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return found


def test_stopped_while_the_model_loads_nothing_is_lost_and_the_next_run_begins(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = models.load_policy

    def load(*arguments: Any) -> Any:
        send(signal.SIGTERM)
        return whole(*arguments)

    monkeypatch.setattr(models, "load_policy", load)
    with pytest.raises(StoppedError, match=r"SIGTERM while it was loading: there was nothing to save"):
        loop.run(parse(document()), tmp_path, display="quiet")
    assert newest(tmp_path) is None
    assert (state(tmp_path)["phase"], state(tmp_path)["step"]) == ("Stopped", 0)
    monkeypatch.undo()
    loop.run(parse(document()), tmp_path, display="quiet")
    assert newest(tmp_path) == 3


def test_stopped_during_an_evaluation_it_is_made_again_and_the_end_is_the_same(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = document(checkpoint={"everyIterations": 100}, optimizer={"learningRate": 1e-2, "emaDecay": 0.5})
    loop.run(parse(values), tmp_path / "whole", display="quiet")
    whole, calls = trajectories.sample_trajectories, iter(range(100))

    def sample_trajectories(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 1:  # the evaluation after iteration 2
            send(signal.SIGINT)
        return whole(*arguments, **options)

    monkeypatch.setattr(measurement, "sample_trajectories", sample_trajectories)
    with pytest.raises(StoppedError, match=r"SIGINT after iteration 2 of 3"):
        loop.run(parse(values), tmp_path / "parts", display="quiet")
    assert newest(tmp_path / "parts") == 2
    loop.run(parse(values), tmp_path / "parts", display="quiet")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    for folder in ("whole", "parts"):
        lines = [json.loads(text) for text in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["iteration"] for line in lines if line["kind"] == "evaluation"] == [0, 2, 3]


@pytest.mark.parametrize("place", range(4))
def test_stopped_at_once_in_the_middle_of_a_checkpoint_the_one_before_counts(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Each of its objects in turn: two of tensors, the state, the manifest."""
    whole = FolderStore._write
    written: list[Path] = []
    stop = Stop()

    def write(self: FolderStore, path: Path, data: bytes, if_absent: bool) -> None:
        if "step-00000002" in str(path):
            written.append(path)
            if len(written) == place + 1:
                send(signal.SIGINT)
                while not stop.requested:  # the main thread takes signals, this is another
                    time.sleep(0.001)
                send(signal.SIGINT)
                raise SystemExit  # the process is gone, and its threads with it
        whole(self, path, data, if_absent)

    monkeypatch.setattr(loop, "Stop", lambda: stop)
    monkeypatch.setattr(FolderStore, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        loop.run(parse(document(evaluation={"everyIterations": 0})), tmp_path, display="quiet")
    assert newest(tmp_path) == 1
    assert state(tmp_path)["step"] in (2, 3)  # training goes on while a checkpoint is written
    monkeypatch.undo()
    loop.run(parse(document(evaluation={"everyIterations": 0})), tmp_path, display="quiet")
    assert newest(tmp_path) == 3
    assert [path.name for path in tmp_path.rglob(".*") if path.is_file()] == [ownership.NAME]


def test_on_a_terminal_one_ctrl_c_is_answered_and_two_stop_at_once(document: Make, tmp_path: Path) -> None:
    """A real terminal, that turns the key into the signal."""
    values = document(
        training={"iterations": 100_000, "promptsPerIteration": 64},  # an iteration takes a while
        evaluation={"everyIterations": 0},
        checkpoint={"everyIterations": 100_000},
    )
    path = tmp_path / "job.json"
    path.write_text(json.dumps(values))
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "60"}
        program = [sys.executable, "-m", "tailorpo_trainer", str(path), "--output", str(tmp_path / "run")]
        os.execv(sys.executable, program)
    text = until(terminal, b"1/100000")
    os.write(terminal, b"\x03")
    text += until(terminal, b"stops at once")
    os.write(terminal, b"\x03")
    text += until(terminal, None)
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    # Who is quick enough stops well before the second key.
    assert os.waitstatus_to_exitcode(status) in (ExitCode.INTERRUPTED, ExitCode.STOPPED)
    assert b"SIGINT: stopping after a checkpoint" in text
    assert b"Traceback" not in text
    assert text.count(b"\x1b[?25l") == text.count(b"\x1b[?25h")
    json.loads((tmp_path / "run" / "progress.json").read_text())


def until(terminal: int, wanted: bytes | None) -> bytes:
    """What a terminal shows until some text comes, or its program ends."""
    text = b""
    while wanted is None or wanted not in text:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            part = b""
        if not part:
            assert wanted is None, text
            break
        text += part
    return text


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.STOPPED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_one_signal_ends_the_loading(
    tmp_path: Path, document: Make, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """However long it takes: nothing is lost by it."""

    def load(*_: Any) -> None:
        threading.Timer(0.1, send, [number]).start()
        threading.Event().wait(300)

    monkeypatch.setattr(models, "load_policy", load)
    with pytest.raises(StoppedError, match=f"^stopped by {number.name} while it was loading") as caught:
        loop.run(parse(document()), tmp_path, display="quiet")
    assert caught.value.exit_code == code


def test_two_signals_at_a_bad_moment_are_130_and_leave_no_traceback(tmp_path: Path, document: Make) -> None:
    """While something runs that asks nobody: the process ends there and then."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(document()))
    code = (
        "import os, signal, sys, time\n"
        "from tailorpo_trainer import cli\n"
        "from tailorpo_trainer.training import setup\n"
        "def claim(*_):\n"
        "    print('claiming', flush=True)\n"
        "    time.sleep(100)\n"
        "setup.claim = claim\n"
        f"sys.exit(cli.main(['run', {str(path)!r}, '--output', {str(tmp_path / 'run')!r}, '--json']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claiming\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in errors
    assert out == ""
