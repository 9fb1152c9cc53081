"""The independent judge: which pictures it gets, and how its results are counted and shown."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import cli, document, models
from tailorpo_trainer.evaluation.measurement import sample_pictures
from tailorpo_trainer.evaluation.recognition import Judge, Recognition, animal_in
from tailorpo_trainer.stats import wilson
from tailorpo_trainer.tiny_animals import ANIMALS
from tailorpo_trainer.training.loop import run


@pytest.mark.parametrize(
    ("prompt", "animal"),
    [
        *((f"a photo of a {animal} on a red background", animal) for animal in ANIMALS),
        ("Two CATS", "cat"),
        ("foxes", "fox"),
        ("a beetle", "beetle"),
        ("a catalogue", None),
        ("a cat and a dog", None),
        ("a wolf", None),
        ("", None),
    ],
)
def test_a_prompt_names_one_known_animal_or_is_left_out(prompt: str, animal: str | None) -> None:
    assert animal_in(prompt) == animal


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_is_the_published_one(count: int, of: int, low: float, high: float) -> None:
    assert wilson(count, of) == pytest.approx((low, high), abs=1e-4)
    assert wilson(of - count, of) == pytest.approx((1 - high, 1 - low), abs=1e-4)


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "test"},
        "spec": {
            "model": {"name": "tiny-animals"},
            "prompts": {"list": ["a cat", "a dog"]},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo"},
            "sampling": {"steps": 10, "trainedSteps": {"count": 1, "choose": "early"}, "guidanceScale": 3.0},
            "training": {"iterations": 1, "promptsPerIteration": 1},
            "evaluation": {"everyIterations": 0},
        },
    }


def test_the_judge_finds_what_was_asked_for_and_nothing_in_noise(values: dict[str, Any]) -> None:
    policy = models.load_policy(document.parse(values).spec)
    prompts, pictures = sample_pictures(policy, ["a cat", "a pig", "a wolf"], 12, seed=0)
    judge = Judge()
    judge.update(pictures[:5], prompts[:5])
    judge.update(pictures[5:], prompts[5:])
    assert judge.compute() == Recognition(right=8, images=8, left_out=4)

    larger, swapped, nothing = Judge(), Judge(), Judge()
    larger.update(torch.nn.functional.interpolate(pictures, scale_factor=2), prompts)
    assert larger.compute() == judge.compute()
    swapped.update(pictures[:2], ["a pig", "a cat"])
    assert swapped.compute().right == 0
    nothing.update(pictures[2:3], prompts[2:3])
    assert nothing.compute() == Recognition(0, 0, 1)


def test_evaluate_says_how_many_are_named_right(values: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    run(document.parse(values), tmp_path, display="quiet")
    command = ["evaluate", str(tmp_path), "--images", "3", "--prompt", "a cat", "--prompt", "a wolf"]
    capsys.readouterr()
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recognised"]
    low, high = wilson(2, 2)
    assert found["before"] == {"share": 1.0, "low": low, "high": high}
    assert (found["images"], found["images_left_out"]) == (2, 1)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if line.startswith("named right "))
    assert "100.0 % (34.2 to 100.0)" in row
    assert "of 2 pictures whose prompt names one of its animals; 1 of other prompts left out" in shown
    assert cli.main(["evaluate", str(tmp_path), "--images", "2", "--prompt", "a wolf", "--json"]) == 0
    assert "recognised" not in json.loads(capsys.readouterr().out)
