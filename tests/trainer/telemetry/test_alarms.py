"""When an alarm is raised, and when it is not: on made-up figures, and on whole runs that go wrong."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import NotFiniteError
from tailorpo_trainer.rewards import weighted_sum
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.training.loop import run

Make = Callable[..., dict[str, Any]]
WELL = {"tied": 0.1, "logit_abs": 0.3, "clamped": None, "reward": 1.0, "reward_std": 0.2}
DDPO = {"logit_abs": 30.0, "clamped": 0.1, "reward": 0.1, "reward_std": 0.2}


def names(found: Any) -> list[str]:
    return [alarm.name for alarm in found]


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        (WELL | {"tied": 1.0}, "gap-at-zero"),
        (WELL | {"logit_abs": 5.1}, "logit-saturated"),
        (WELL | {"clamped": 0.51}, "ratio-clamped"),
        (DDPO | {"reward_std": 0.0}, "gap-at-zero"),
        (DDPO | {"reward_std": 1e-9}, "gap-at-zero"),
        (DDPO | {"clamped": 0.9}, "ratio-clamped"),
        (WELL | {"gradient_zeros": 0.51}, "gradient-vanished"),
        (DDPO | {"gradient_zeros": 1.0}, "gradient-vanished"),
        (WELL | {"gradient_zeros": 1.0, "tied": 1.0}, "gap-at-zero"),
        (DDPO | {"gradient_zeros": 1.0, "reward_std": 0.0}, "gap-at-zero"),
        (WELL | {"gradient_zeros": 1.0, "clamped": 1.0}, "ratio-clamped"),
    ],
)
def test_three_bad_iterations_raise_an_alarm_and_two_do_not(figures: dict[str, Any], name: str) -> None:
    well = WELL if "tied" in figures else DDPO
    assert names(alarms.from_iterations([well, figures, figures, figures])) == [name]
    assert names(alarms.from_iterations([figures, figures])) == []
    for place in range(3):
        lines = [figures] * 3
        lines[place] = well
        assert names(alarms.from_iterations(lines)) == []


@pytest.mark.parametrize("well", [WELL, DDPO])
def test_a_healthy_iteration_raises_none(well: dict[str, Any]) -> None:
    """DDPO's logit is a likelihood ratio's logarithm: it has no beta that could be lowered."""
    assert names(alarms.from_iterations([well] * 5)) == []


def test_figures_that_were_not_finite_raise_nothing_and_break_nothing() -> None:
    lines = [dict.fromkeys(WELL)] * 3
    assert names(alarms.from_iterations(lines)) == []
    line = dict.fromkeys(["reward", "reward_standard_error", "rewards", "scores", "diversity", "watched", "images"])
    assert names(alarms.from_evaluations([line, line | {"reward": 1.0}])) == []


def evaluation(scores: Any, watched: Any = None, diversity: float = 0.2, error: float | None = 0.01) -> dict[str, Any]:
    scores, watched = np.asarray(scores, float), None if watched is None else np.asarray(watched, float)
    parts = {"main": scores} | ({} if watched is None else {"scorer": watched})
    deviation = {name: float(part.std(ddof=1) / len(part) ** 0.5) for name, part in parts.items()}
    return {
        "images": len(scores),
        "prompts": ["a cat", "a dog"],
        "reward": float(scores.mean()),
        "reward_standard_error": deviation["main"],
        "rewards": {name: float(part.mean()) for name, part in parts.items()},
        "rewards_standard_error": deviation,
        "watched": [name for name in parts if name != "main"],
        "watched_scores": {name: part.tolist() for name, part in parts.items() if name != "main"},
        "scores": scores.tolist(),
        "diversity": diversity,
        "diversity_standard_error": error,
        "feature_diversity": 0.4,
        "feature_diversity_standard_error": 0.01,
    }


def drawn(seed: int, count: int = 64) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(10, 1, count), generator.normal(5, 1, count)


def test_pure_noise_raises_hardly_ever() -> None:
    raised = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        lines: list[dict[str, Any]] = []
        for number in range(30):
            scores, watched = drawn(1000 * seed + number, 32)
            lines.append(evaluation(scores, watched, 0.2 + generator.normal(0, 0.01)))
            raised += bool(names(alarms.from_evaluations(lines)))
    assert raised <= 1


@pytest.mark.parametrize("paired", [True, False])
def test_over_optimisation_needs_a_reward_that_rises_and_something_that_falls(paired: bool) -> None:
    scores, watched = drawn(0)
    first = evaluation(scores, watched)
    up, down, same = scores + 2, watched - 2, watched
    cases: list[tuple[Any, Any, float, str | None]] = [
        (up, same, 0.2, None),
        (up, watched + 2, 0.3, None),
        (scores, down, 0.05, None),
        (scores - 2, down, 0.05, None),
        (up, down, 0.2, "scorer from"),
        (up, same, 0.1, "diversity from 0.2 to 0.1"),
        (up, same, 0.17, None),
    ]
    for reward, other, diversity, text in cases:
        line = evaluation(reward, other, diversity)
        lines = [first, line]
        if not paired:
            lines = [{k: v for k, v in each.items() if k not in ("scores", "watched_scores")} for each in lines]
        found = list(alarms.from_evaluations(lines))
        assert [alarm.name for alarm in found] == (["over-optimisation"] if text else []), text
        assert all(text is not None and text in alarm.message for alarm in found)


def test_a_fall_that_is_certain_but_tiny_is_none() -> None:
    scores, watched = drawn(0, 1000)
    assert names(alarms.from_evaluations([evaluation(scores, watched), evaluation(scores + 1, watched - 0.05)])) == []


def test_what_a_clip_model_sees_may_fall_while_pixels_vary() -> None:
    scores, _ = drawn(0)
    fallen = evaluation(scores + 1) | {"feature_diversity": 0.2}
    (alarm,) = alarms.from_evaluations([evaluation(scores), fallen])
    assert "(feature diversity from 0.4 to 0.2)" in alarm.message
    assert names(alarms.from_evaluations([evaluation(scores), fallen | {"feature_diversity": None}])) == []


def test_diversity_that_is_measured_badly_raises_nothing() -> None:
    scores, _ = drawn(0)
    for error in (None, 0.1):
        lines = [evaluation(scores, error=error), evaluation(scores + 1, diversity=0.05, error=error)]
        assert names(alarms.from_evaluations(lines)) == []


def test_only_evaluations_of_one_kind_are_compared() -> None:
    """Evaluation may change when a run goes on: other pictures, prompts and watched rewards."""
    (scores, watched), (few, fewer) = drawn(0), drawn(1, 16)
    changed = evaluation(few + 5, fewer - 5, 0.01)
    assert names(alarms.from_evaluations([evaluation(scores), changed])) == []
    assert names(alarms.from_evaluations([evaluation(scores), evaluation(scores + 5, watched)])) == []
    later = evaluation(few + 9, fewer - 9, 0.01)
    assert names(alarms.from_evaluations([evaluation(scores), changed, later])) == ["over-optimisation"]


class Plugin:
    """A reward as an entry point would bring it."""

    unit, differentiable = "1", False

    def __init__(self, name: str, score: Callable[[Tensor], Tensor]) -> None:
        self.name, self.score = name, score

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score(images)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Callable[[Tensor], Tensor]]], None]:
    """Rewards by name, as if installed."""

    def install(scores: dict[str, Callable[[Tensor], Tensor]]) -> None:
        def find(name: str) -> Any:
            return SimpleNamespace(name=name, value="test", load=lambda: lambda *_: Plugin(name, scores[name]))

        monkeypatch.setattr(weighted_sum, "find", find)

    return install


def written(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "alarm"]


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def test_a_run_that_trades_a_watched_reward_away_says_so(
    document: Make, tmp_path: Path, plugins: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins({"bright": brightness, "dark": lambda images: -brightness(images)})
    values = document(
        rewards=[{"name": "bright"}],
        prompts={"list": ["a cat"]},
        lora={"rank": 4, "alpha": 16, "targetModules": ["to_q", "to_v", "conv_in", "conv_out", "conv1", "conv2"]},
        sampling={"steps": 4, "trainedSteps": {"count": 4}, "guidanceScale": 1.0},
        optimizer={"learningRate": 0.02},
        training={"iterations": 6, "promptsPerIteration": 1, "samplesPerPrompt": 16},
        evaluation={"everyIterations": 6, "images": 16, "rewards": [{"name": "dark"}]},
    )
    run(parse(values), tmp_path, display="quiet")
    found = [line for line in written(tmp_path) if line["name"] == "over-optimisation"]
    assert len(found) == 1
    assert "dark from" in found[0]["message"]
    out, err = capsys.readouterr()
    assert "alarm: over-optimisation" in err
    assert out == ""


@pytest.mark.parametrize("method", ["tailorpo", "ddpo"])
def test_a_constant_reward_is_a_gap_at_zero_once_a_run(
    document: Make, tmp_path: Path, plugins: Any, method: str
) -> None:
    plugins({"same": lambda images: torch.full((len(images),), 0.1)})
    for iterations in (3, 5):
        values = document(
            rewards=[{"name": "same"}],
            method={"name": method},
            training={"iterations": iterations, "promptsPerIteration": 2},
            evaluation={"everyIterations": 0},
        )
        run(parse(values), tmp_path, display="quiet")
        assert [(line["name"], line["iteration"]) for line in written(tmp_path)] == [("gap-at-zero", 3)]


def test_a_huge_beta_saturates_the_logit(document: Make, tmp_path: Path) -> None:
    values = document(
        method={"name": "tailorpo", "beta": 1e6},
        training={"iterations": 5, "promptsPerIteration": 2},
        evaluation={"everyIterations": 0},
    )
    run(parse(values), tmp_path, display="quiet")
    assert "logit-saturated" in [line["name"] for line in written(tmp_path)]


def test_an_ordinary_run_raises_none(document: Make, tmp_path: Path) -> None:
    run(parse(document(optimizer={"learningRate": 1e-4})), tmp_path, display="quiet")
    assert written(tmp_path) == []


def test_a_reward_that_is_not_finite_is_an_alarm_before_the_end(document: Make, tmp_path: Path, plugins: Any) -> None:
    plugins({"broken": lambda images: images.mean((1, 2, 3)) * float("nan")})
    values = document(rewards=[{"name": "broken"}], evaluation={"everyIterations": 0})
    with pytest.raises(NotFiniteError):
        run(parse(values), tmp_path, display="quiet")
    assert [line["name"] for line in written(tmp_path)] == ["not-finite"]
