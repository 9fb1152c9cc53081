"""A document names a file of prompts, not its content: a resume says what has changed in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import prompts
from tailorpo_trainer.document import parse
from tailorpo_trainer.training.loop import run

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["a", "b"], ["a", "b"], None),
        (["a", "b"], ["b", "c", "d"], "2 are new and 1 are gone, 1 stay"),
        (["a", "b"], ["b", "a"], "the 2 distinct prompts are the same, but stand in another order or number"),
        (["a", "b"], ["a", "b", "b"], "the 2 distinct prompts are the same, but stand in another order or number"),
    ],
)
def test_changes_are_counted(before: list[str], now: list[str], said: str | None) -> None:
    assert prompts.changes(before, now) == said
    assert (prompts.digest(before) == prompts.digest(now)) == (said is None)


@pytest.mark.parametrize("kept", ["folder", "nothing", "older checkpoint"])
def test_a_resume_with_other_prompts_says_so(
    document: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    file, folder = tmp_path / "prompts.txt", tmp_path / "out"

    def train(iterations: int, *lines: str) -> list[str]:
        file.write_text("\n".join(lines))
        caplog.clear()
        training = {"iterations": iterations, "promptsPerIteration": 2}
        run(parse(document(prompts={"file": str(file)}, training=training)), folder, display="quiet")
        return [text for text in caplog.messages if "prompts are not those" in text]

    assert train(1, "a cat", "a dog", "a bee") == []
    assert train(2, "a cat", "a dog", "a bee") == []
    if kept == "nothing":
        (folder / "prompts.json").unlink()
    if kept == "older checkpoint":
        forget_digest(folder / "attempt-0002" / "step-00000002")
    [said] = train(3, "a cat", "a fox")
    known = "what they were is not known" if kept == "nothing" else "1 are new and 2 are gone, 1 stay"
    assert f"those of the first 2 iterations: {known}; training goes on" in said
    assert train(4, "a cat", "a fox") == []


def test_a_resume_on_an_empty_machine_knows_them_from_the_storage(
    document: Make, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for iterations, words in ((1, ["a cat", "a dog"]), (2, ["a dog", "a fox", "a bee"])):
        machine = tmp_path / str(iterations)
        machine.mkdir()
        monkeypatch.chdir(machine)
        (tmp_path / "prompts.txt").write_text("\n".join(words))
        parts = {
            "prompts": {"file": str(tmp_path / "prompts.txt")},
            "training": {"iterations": iterations, "promptsPerIteration": 2},
            "checkpoint": {"storage": f"s3://{s3_bucket}/run", "everyIterations": 1},
        }
        run(parse(document(**parts)), display="quiet")
    assert "2 are new and 1 are gone, 1 stay" in caplog.text


def forget_digest(step: Path) -> None:
    """The checkpoint as an earlier version wrote it."""
    from tailorpo_trainer.checkpoint.format import digest

    state, manifest = json.loads((step / "state.json").read_text()), json.loads((step / "manifest.json").read_text())
    del state["data"]["prompts_sha256"]
    (step / "state.json").write_text(json.dumps(state))
    manifest["objects"]["state.json"] = digest((step / "state.json").read_bytes()).model_dump()
    (step / "manifest.json").write_text(json.dumps(manifest))
