"""Two runs of one document: the one that began earlier hears of the other, ends with 75, and spoils nothing."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import checkpoint
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ExitCode, StoppedError
from tailorpo_trainer.results import locations, ownership
from tailorpo_trainer.results.ownership import Owner
from tailorpo_trainer.training.loop import run
from tailorpo_trainer.training.session import Session

Make = Callable[..., dict[str, Any]]


def iterations(folder: Path) -> list[int]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["iteration"] for line in found if line["kind"] == "iteration"]


@pytest.fixture
def at_iteration(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Calls an action once, in the rollout of the iteration after `number`."""

    def make(number: int, action: Callable[[], None]) -> None:
        original = Session.roll_out
        done: list[bool] = []

        def roll_out(self: Session, context: Any) -> Any:
            if self.iteration == number and not done:
                done.append(True)
                action()
            return original(self, context)

        monkeypatch.setattr(Session, "roll_out", roll_out)

    return make


@pytest.mark.parametrize("fresh", [False, True])
def test_the_earlier_of_two_runs_in_one_folder_ends(
    document: Make, tmp_path: Path, at_iteration: Callable[..., None], fresh: bool
) -> None:
    """As when a process that was frozen or cut off wakes up after another has finished its work."""
    job = parse(document(training={"iterations": 4, "promptsPerIteration": 2}))
    run(job, tmp_path / "alone", display="quiet")
    folder = tmp_path / "both"
    kept: dict[Path, bytes] = {}

    def later() -> None:
        run(job, folder, display="quiet", fresh=fresh)
        kept.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})

    at_iteration(2, later)
    with pytest.raises(StoppedError, match="attempt 2, which has taken over, after iteration") as caught:
        run(job, folder, display="quiet")
    assert caught.value.exit_code == ExitCode.STOPPED
    assert iterations(folder) == [1, 2, 3, 4]
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads((folder / "progress.json").read_text())["phase"] == "Succeeded"
    name = "adapter/pytorch_lora_weights.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_earlier_of_two_machines_hears_of_the_other_from_the_storage(
    document: Make, tmp_path: Path, s3_bucket: str, at_iteration: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3_bucket}/run"
    job = parse(document(checkpoint={"storage": uri, "everyIterations": 1, "keep": 9}))

    choose = locations.choose

    def on(machine: str) -> None:
        def chosen(*arguments: Any) -> Any:
            return dataclasses.replace(choose(*arguments), output=tmp_path / machine)

        monkeypatch.setattr(locations, "choose", chosen)
        run(job, display="quiet")

    at_iteration(1, lambda: on("later"))
    with pytest.raises(StoppedError, match="attempt 2, which has taken over"):
        on("earlier")
    assert iterations(tmp_path / "later") == [1, 2, 3]
    assert {ref.attempt for ref in checkpoint.checkpoints(checkpoint.open_store(uri)) if ref.step > 1} == {2}


def test_the_later_attempt_owns_the_folder_whoever_took_it_last(tmp_path: Path) -> None:
    first, second = Owner.new("here", 1), Owner.new("here", 2)
    second.take(tmp_path)
    first.take(tmp_path)  # it was slower between its claim and its first line
    assert second.successor(tmp_path) is None
    assert first.successor(tmp_path) == "attempt 2"
    Owner.new("s3://there", 1).take(tmp_path)
    assert second.successor(tmp_path) == "another run, whose checkpoints are at s3://there"
    for text in ("", "[]", "{", "{}"):
        (tmp_path / ownership.NAME).write_text(text)
        assert (second.successor(tmp_path) is None) == (text != "{}")
    (tmp_path / ownership.NAME).unlink()
    assert second.successor(tmp_path) is None
