"""Sampling and comparison of a finished run: the base model before, the trained one after."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tailorpo_trainer import cli, models, rewards
from tailorpo_trainer.diffusion.noise import Purpose
from tailorpo_trainer.distributed.signals import StopRequested
from tailorpo_trainer.document import parse
from tailorpo_trainer.evaluation import contact_sheet, trained
from tailorpo_trainer.evaluation.measurement import diversity, sample_pictures
from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.training import loop
from tailorpo_trainer.training.session import Session

PROMPTS = ["a cat", "a dog", "a bee"]


def values(pipeline: Path, **parts: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "test"},
        "spec": {
            "model": {"name": str(pipeline)},
            "prompts": {"list": PROMPTS},
            "rewards": [{"name": "colourfulness"}, {"name": "jpeg-compressibility", "weight": 0.5}],
            "method": {"name": "tailorpo"},
            "sampling": {"steps": 3, "trainedSteps": {"count": 2}, "guidanceScale": 2.0},
            "optimizer": {"learningRate": 0.05, "emaDecay": 0.5},
            "training": {"iterations": 2, "promptsPerIteration": 3, "samplingBatchSize": 2},
            "evaluation": {"everyIterations": 0, "rewards": [{"name": "jpeg-incompressibility"}]},
        }
        | parts,
    }


@pytest.fixture(scope="module")
def done(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    loop.run(parse(values(tiny_pipeline)), folder, display="quiet")
    return folder


@pytest.fixture
def run(tiny_pipeline: Path) -> Spec:
    return parse(values(tiny_pipeline)).spec


def pixels(folder: Path, pattern: str) -> list[Any]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob(pattern))]


def test_before_is_the_untouched_base_and_after_is_the_average(done: Path, run: Spec, tmp_path: Path) -> None:
    path = trained.sample(done, [], 4, 7, tmp_path)
    assert path == tmp_path / "sheet.png"
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "sheet.png", *(f"{n:03d}-{name}.png" for n in range(4) for name in ("before", "after"))
    }  # fmt: skip
    base = models.load_policy(run)
    _, drawn = sample_pictures(base, PROMPTS, 4, 7, batch=2, purpose=Purpose.SAMPLING)
    before, after = pixels(tmp_path, "*-before.png"), pixels(tmp_path, "*-after.png")
    for one, other in zip(before, drawn, strict=True):
        assert np.array_equal(one, np.asarray(contact_sheet.image(other)))
    assert not any(np.array_equal(one, other) for one, other in zip(before, after, strict=True))

    from safetensors.torch import load_file

    (saved,) = (done / "adapter").glob("*.safetensors")
    adapter = list(load_file(saved).values())
    mine = list(trained.load(done).policy.adapter().values())
    assert sorted(float(each.double().norm()) for each in adapter) == pytest.approx(
        sorted(float(each.detach().double().norm()) for each in mine)
    )


def test_a_seed_gives_the_same_pictures_and_fewer_are_the_first_of_more(done: Path, tmp_path: Path) -> None:
    for name, images, seed in (("one", 3, 1), ("two", 2, 1), ("three", 2, 2)):
        trained.sample(done, ["a fish"], images, seed, tmp_path / name, before=False)
    one, two, three = (pixels(tmp_path / name, "*-after.png") for name in ("one", "two", "three"))
    assert all(np.array_equal(a, b) for a, b in zip(one[:2], two, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(two, three, strict=True))
    assert not list((tmp_path / "one").glob("*before*"))


def test_an_evaluation_is_what_numpy_computes_from_the_same_pictures(
    done: Path, run: Spec, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(done), "--images", "5", "--seed", "3", "--json"]) == 0
    found = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    policy = trained.load(done).policy
    _, after = sample_pictures(policy, PROMPTS, 5, 3, batch=2)
    with policy.reference():
        texts, before = sample_pictures(policy, PROMPTS, 5, 3, batch=2)
    reward, watched = rewards.load(run.rewards, "cpu"), rewards.load(run.evaluation.rewards, "cpu")
    one, other = reward(before, texts), reward(after, texts)
    scores = {"reward": (one.total, other.total)}
    scores |= {name: (one.term_scores[name], other.term_scores[name]) for name in one.term_scores}
    name = "jpeg-incompressibility"
    scores[name] = watched(before, texts).term_scores[name], watched(after, texts).term_scores[name]
    assert [row["score"] for row in found["scores"]] == list(scores)
    for row in found["scores"]:
        a, b = (each.double().numpy() for each in scores[row["score"]])
        assert row["before"] == pytest.approx(a.mean(), rel=1e-5)
        assert row["after"] == pytest.approx(b.mean(), rel=1e-5)
        assert row["difference"] == pytest.approx((b - a).mean(), rel=1e-3, abs=1e-5)
        student = 2.776445  # for four degrees of freedom
        assert row["difference_interval"] == pytest.approx(student * (b - a).std(ddof=1) / 5**0.5, rel=1e-3, abs=1e-4)
    assert found["images"] == 5
    assert found["iteration"] == 2
    assert found["diversity"]["after"] == pytest.approx(diversity(after, texts), rel=1e-4)
    assert found["diversity"]["difference_interval"] == pytest.approx(
        math.hypot(found["diversity"]["before_interval"], found["diversity"]["after_interval"])
    )


def test_one_picture_of_each_prompt_has_no_diversity_and_two_have_wide_intervals(
    done: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(done), "--images", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert set(found["diversity"].values()) == {None}
    assert all(row["difference_interval"] >= 0 for row in found["scores"])


def test_the_table_is_aligned(done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(done), "--images", "4"]) == 0
    title, *rows, note = capfd.readouterr().out.splitlines()
    assert "4 pictures" in title
    assert "95 %" in note
    assert [row.split()[0] for row in rows] == [
        "before", "reward", "colourfulness", "jpeg-compressibility", "jpeg-incompressibility", "diversity"
    ]  # fmt: skip
    assert len({len(row) for row in rows}) == 1
    assert all(row.count("±") == 3 for row in rows[1:-1])


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_that_is_no_run_is_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert cli.main([command, str(folder)]) == 78
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"error: {folder} is no output folder of a run: it has no job.yaml\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_yet_is_one_sentence(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Session) -> Any:
        raise StopRequested

    monkeypatch.setattr(Session, "rollout_context", stop)
    with pytest.raises(Exception, match="stopped by"):
        loop.run(parse(values(tiny_pipeline)), tmp_path, display="quiet")
    capsys.readouterr()
    for command in ("sample", "evaluate"):
        assert cli.main([command, str(tmp_path)]) == 65
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path} holds no checkpoint yet")
        assert err.count("\n") == 1


def test_a_sheet_keeps_the_shape_of_its_pictures_and_fits_a_screen() -> None:
    tall = [contact_sheet.image(torch.full((3, 96, 64), 0.1 * n)) for n in range(5)]
    texts = ["a cat", "words " * 60, "unbroken" * 60, "", "日本"]
    made = contact_sheet.compose({"before": tall, "after": tall}, texts)
    assert made.width <= contact_sheet.WIDTH
    assert contact_sheet._shown_as((64, 96), 0) == (128, 192)
    assert contact_sheet._shown_as((512, 768), 0) == (213, 320)
    assert contact_sheet._shown_as((48, 48), 0) == (144, 144)
    assert contact_sheet._shown_as((48, 48), 100) == (100, 100)
    assert contact_sheet._columns(16, 5) == 4
    assert contact_sheet._columns(1, 0) == 1
    assert contact_sheet._columns(7, 5) == 4
    # The picture's colour appears at the picture's position.
    assert made.getpixel((18 + 10, 18 + 30)) == (0, 0, 0)


def test_a_sheet_s_prompts_stay_within_their_pictures() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    for text in ("words " * 60, "unbroken" * 60, "one two"):
        lines = contact_sheet._wrap(text, 100, font)
        assert 1 <= len(lines) <= contact_sheet.LINES
        assert all(font.getlength(line) <= 100 for line in lines)
    assert contact_sheet._wrap("words " * 60, 100, font)[-1].endswith("words…")
    assert contact_sheet._wrap("one two", 100, font) == ["one two"]


def test_many_pictures_make_a_sheet_of_the_first(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MOST", 2)
    trained.sample(done, ["a cat"], 3, 0, tmp_path, before=False)
    assert len(list(tmp_path.glob("*-after.png"))) == 3
    trained.sample(done, ["a cat"], 2, 0, tmp_path / "two", before=False)
    with (
        Image.open(tmp_path / "sheet.png") as sheet_of_some,
        Image.open(tmp_path / "two" / "sheet.png") as sheet_of_all,
    ):
        assert sheet_of_some.size == sheet_of_all.size
