"""Every end of a run, provoked: its exit status, and what it leaves in the termination message and `progress.json`."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import cli, models
from tailorpo_trainer.distributed.signals import StopRequested
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.telemetry import termination
from tailorpo_trainer.training.loop import leave

PAGE = Path(__file__).parents[3] / "docs" / "exit-codes.md"

ELSEWHERE = {ExitCode.STALLED}
"""Provoked where several processes are."""

Install = Callable[[Callable[[int], Any]], None]


def last(log: Path) -> Progress:
    found = termination.read(log)
    assert found is not None
    assert log.stat().st_size <= 4096
    return found


def written(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((tmp_path / "run" / "progress.json").read_text()))


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def fail(error: BaseException) -> None:
    raise error


def bad_prompts(start: Any, tmp_path: Path, probe: Install) -> int:
    (tmp_path / "empty.txt").write_text("")
    return int(start(prompts={"file": "empty.txt"}))


def nobody_answers(start: Any, tmp_path: Path, probe: Install) -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
        return int(start(rewards=[{"name": "http", "endpoints": [url], "retries": 0}]))


def reward_raises(start: Any, tmp_path: Path, probe: Install) -> int:
    probe(lambda call: fail(KeyError("weights")) if call == 5 else None)
    return int(start())


def disk_is_full(start: Any, tmp_path: Path, probe: Install) -> int:
    """Everything that is written from the third iteration on, but what is there already can be changed."""

    def on_call(call: int) -> None:
        if call == 5:
            run = tmp_path / "run"
            (run / "metrics.jsonl").unlink()
            for name in ("metrics.jsonl", f".progress.json.{os.getpid()}"):
                (run / name).symlink_to("/dev/full")

    probe(on_call)
    return int(start())


def stopped(start: Any, tmp_path: Path, probe: Install) -> int:
    probe(lambda call: send(signal.SIGTERM) if call == 5 else None)
    return int(start())


def not_finite(start: Any, tmp_path: Path, probe: Install) -> int:
    probe(lambda call: float("nan") if call >= 5 else 1.0)
    return int(start())


def bad_document(start: Any, tmp_path: Path, probe: Install) -> int:
    return int(start(lora={"rank": 0}))


def interrupted(start: Any, tmp_path: Path, probe: Install) -> int:
    def on_call(call: int) -> None:
        if call == 5:
            while "checkpoint" not in written(tmp_path):  # committed in the background, however long it takes
                time.sleep(0.01)
            with suppress(StopRequested):  # the first only asks to stop
                send(signal.SIGINT)
            send(signal.SIGINT)

    probe(on_call)
    return int(start())


def wrong_use(start: Any, tmp_path: Path, probe: Install) -> int:
    return cli.main(["run", "job.yaml", "--nonsense"])


def done(start: Any, tmp_path: Path, probe: Install) -> int:
    probe(lambda call: None)
    return int(start())


ENDS: list[tuple[Any, int, str, str | None, str, int]] = [
    (done, 0, "Succeeded", None, "", 3),
    (wrong_use, 2, "Failed", "NoSuchOption", "--nonsense", 0),
    (bad_prompts, 65, "Failed", "DataError", "empty.txt", 0),
    (nobody_answers, 69, "Failed", "UnavailableError", "127.0.0.1", 0),
    (reward_raises, 70, "Failed", "RewardError", "'weights'", 2),
    (disk_is_full, 71, "Failed", "ResourceError", "metrics.jsonl: not written, the disk", 2),
    (stopped, 75, "Stopped", "StoppedError", "SIGTERM after iteration 2 of 3", 2),
    (not_finite, 76, "Failed", "NotFiniteError", "probe", 2),
    (bad_document, 78, "Failed", "DocumentError", "spec.lora.rank", 0),
    (interrupted, 130, "Stopped", "KeyboardInterrupt", "interrupted", 2),
]


@pytest.mark.parametrize(
    ("end", "code", "phase", "kind", "text", "step"), ENDS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_end_has_its_code_and_its_last_word(
    start: Any,
    tmp_path: Path,
    log: Path,
    probe: Install,
    end: Any,
    code: int,
    phase: str,
    kind: str | None,
    text: str,
    step: int,
) -> None:
    assert end(start, tmp_path, probe) == code
    kept = Progress.model_validate(written(tmp_path)) if step else None
    reported = last(log)
    assert (reported.phase, reported.step) == (phase, step)
    if kind is None:
        assert reported.error is None
        assert reported.adapter == str(tmp_path / "run" / "adapter")
    else:
        assert reported.error is not None
        assert (reported.error.class_, reported.error.exit_code) == (kind, code)
        assert text in reported.error.text
        assert reported.message == reported.error.text.splitlines()[0][:256]
    if step:
        assert (reported.name, reported.namespace, reported.attempt, reported.of) == ("test", "research", 1, 3)
        assert reported.checkpoint is not None
        # A process that is interrupted does not wait for a checkpoint that is being written.
        assert reported.checkpoint.step in ((step - 1, step) if code == ExitCode.INTERRUPTED else (step,))
        assert Path(reported.checkpoint.uri).is_dir()
        assert reported.metrics.reward is not None
        assert kept is not None
        if code == ExitCode.INTERRUPTED:  # so it may be noted between the two readings
            kept = kept.replace(checkpoint=reported.checkpoint, updated=reported.updated)
        assert kept == reported


def test_the_page_lists_the_codes_that_are_provoked() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    assert listed - ELSEWHERE == {code for _, code, *_ in ENDS}
    assert {code.value for code in ExitCode} - ELSEWHERE == listed - ELSEWHERE


def test_a_bug_is_told_too(start: Any, log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(models, "load_policy", lambda *_: fail(ZeroDivisionError("a bug")))
    assert start(rewards=[{"name": "colourfulness"}]) == 70
    error = last(log).error
    assert error is not None
    assert (error.class_, error.text, error.exit_code) == ("ZeroDivisionError", "a bug", 70)
    assert written(tmp_path)["phase"] == "Failed"


def test_memory_that_runs_out_is_told_too(start: Any, log: Path, probe: Install, tmp_path: Path) -> None:
    import torch

    probe(lambda call: fail(torch.OutOfMemoryError("CUDA out of memory")) if call == 5 else None)
    assert start() == 71
    assert (last(log).phase, written(tmp_path)["phase"], last(log).step) == ("Failed", "Failed", 2)


def test_a_killed_process_has_said_how_far_it_was(start: Any, log: Path, probe: Install) -> None:
    observed: list[Progress] = []
    probe(lambda call: observed.append(last(log)))
    assert start() == 0
    assert [(reported.phase, reported.step) for reported in observed] == [
        ("Running", step) for step in (0, 0, 1, 1, 2, 2)
    ]
    # Checkpoints are committed beside the training: they may be noted a little later, and never too early.
    saved = [reported.checkpoint.step if reported.checkpoint else 0 for reported in observed]
    assert saved == sorted(saved)
    assert all(number <= reported.step for number, reported in zip(saved, observed, strict=True))
    found = last(log).checkpoint
    assert found is not None
    assert found.step == 3


def test_an_endless_error_and_its_secrets(
    start: Any, log: Path, probe: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    text = "http://user:hunter22@host/ said wJalrXUtnFEMIK7MDENG" + "é☃" * 50_000
    probe(lambda call: fail(ValueError(text)) if call == 5 else None)
    assert start() == 70
    reported = last(log)
    assert reported.error is not None
    assert "http://host/ said ***" in reported.error.text
    assert reported.step == 2
    for file in (log, tmp_path / "run" / "progress.json"):
        assert not {"hunter22", "wJalrXUtnFEMIK7MDENG"} & set(re.findall(r"\w+", file.read_text()))


def test_an_end_is_of_its_own_run(start: Any, log: Path, probe: Install) -> None:
    assert reward_raises(start, log, probe) == 70
    assert start(lora={"rank": 0}) == 78
    assert (last(log).name, last(log).step) == (None, 0)
    assert wrong_use(start, log, probe) == 2
    assert last(log).checkpoint is None


def test_other_commands_and_help_say_nothing(log: Path, tmp_path: Path) -> None:
    for arguments in (["--help"], ["run", "--help"], ["validate", str(tmp_path / "none.yaml")], ["rum"]):
        cli.main(arguments)
    assert not log.exists()


def test_a_message_that_cannot_be_written_changes_nothing(
    start: Any, probe: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (str(tmp_path / "missing" / "log"), "/dev/full", ""):
        monkeypatch.setenv("TAILORPO_TERMINATION_LOG", target)
        assert start(lora={"rank": 0}) == 78
        assert stopped(start, tmp_path, probe) in (75, 0)


def test_another_run_s_folder_keeps_its_progress(start: Any, tmp_path: Path, probe: Install) -> None:
    probe(lambda call: None)
    assert start() == 0
    before = (tmp_path / "run" / "progress.json").read_bytes()
    assert start(lora={"rank": 4}) == 78
    assert (tmp_path / "run" / "progress.json").read_bytes() == before


@pytest.mark.parametrize(("code", "phase"), [(ExitCode.STALLED, "Failed"), (ExitCode.INTERRUPTED, "Stopped")])
def test_who_is_ended_by_the_watchdog_has_a_last_word(
    log: Path, monkeypatch: pytest.MonkeyPatch, code: ExitCode, phase: str
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("tailorpo_trainer.training.loop.os._exit", codes.append)
    leave(termination.TerminationReporter(Progress(name="test", phase="Running", step=3)), code)
    reported = last(log)
    assert codes == [code]
    assert (reported.phase, reported.step, reported.error and reported.error.exit_code) == (phase, 3, code)
