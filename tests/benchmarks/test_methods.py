"""The comparison of methods: equal effort, correct interpolation, and a page that agrees with the results."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import analysis, files, page, plan, sweep
from benchmarks.methods.analysis import Estimate
from benchmarks.methods.plan import Trial

RESULTS = files.read(files.RESULTS)


def result(rewards: list[float], seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A run of ten images and two queries an iteration, measured every other iteration."""
    evaluations = [
        {
            "iteration": 2 * n,
            "images": 20 * n,
            "reward_queries": 4 * n,
            "rewards": dict.fromkeys(plan.REWARDS, value),
            "diversity": 0.2,
            "named": 1.0,
        }
        for n, value in enumerate(rewards)
    ]
    whole = {"stage": "final", "reward": "colourfulness", "method": "spo", "seed": seed, "error": None}
    return whole | {"flops_per_iteration": 5.0, "evaluations": evaluations} | fields


def test_read_off_between_two_evaluations() -> None:
    runs = [result([10.0, 14.0, 20.0]), result([11.0, 11.0, 9.0], seed=1)]
    assert analysis.read(runs, "images", 20, "colourfulness").values == (4.0, 0.0)
    assert analysis.read(runs, "images", 30, "colourfulness").values == (7.0, -1.0)
    assert analysis.read(runs, "reward_queries", 6, "colourfulness").values == (7.0, -1.0)
    assert analysis.read(runs, "flops", 15, "colourfulness").values == (7.0, -1.0)
    assert analysis.read(runs, "images", 0, "colourfulness").values == (0.0, 0.0)


def test_nothing_is_extrapolated() -> None:
    runs = [result([1.0, 2.0, 3.0]), result([1.0, 2.0], seed=1)]
    assert analysis.budget(runs, "images") == 20
    with pytest.raises(ValueError, match="outside"):
        analysis.read(runs, "images", 21, "colourfulness")


def test_seeds_are_paired_whatever_their_order() -> None:
    runs = [result([0.0, float(seed)], seed=seed) for seed in (2, 0, 1)]
    assert analysis.read(runs, "images", 20, "colourfulness").values == (0.0, 1.0, 2.0)


def test_a_constant_difference_is_told_apart_however_much_seeds_differ() -> None:
    near = Estimate((0.0, 10.0, -10.0, 5.0, 1.0))
    above = Estimate(tuple(value + 1 + n / 100 for n, value in enumerate(near.values)))
    assert analysis.indistinguishable({"one": near, "other": above}) == []
    other = Estimate((5.0, -10.0, 10.0, 0.0, 1.0))
    assert analysis.indistinguishable({"one": near, "other": other}) == [("one", "other")]
    assert not near.differs_from_zero


def test_tuning_chooses_the_greatest_held_out_reward_of_what_did_not_fail() -> None:
    trials = [
        result([1.0, 2.0], stage="tuning", learning_rate=1.0, beta=0.1),
        result([1.0, 3.0], stage="tuning", learning_rate=2.0, beta=0.1),
        result([1.0, 9.0], stage="tuning", learning_rate=3.0, beta=0.1, error="loss not finite"),
        result([1.0, 8.0], stage="final", learning_rate=4.0, beta=0.1),
    ]
    assert analysis.chosen(trials, 0.05) == {("colourfulness", "spo"): (2.0, 0.1)}


def test_every_method_is_tuned_with_the_same_effort() -> None:
    trials = list(plan.tuning())
    assert len({trial.key for trial in trials}) == len(trials)
    assert len(set(Counter((trial.method, trial.reward) for trial in trials).values())) == 1
    assert {trial.budget for trial in trials} == {plan.TUNING_BUDGET}
    assert {trial.seed for trial in trials}.isdisjoint(plan.SEEDS)


@pytest.mark.parametrize("method", plan.METHODS)
def test_two_more_learning_rates_lie_half_way_to_the_neighbours(method: str) -> None:
    rates = [rate for rate, _ in plan.settings(method)]
    for below, rate, above in zip(rates, rates[1:], rates[2:], strict=False):
        if below < rate < above:
            lower, higher = plan.finer(method, rate)
            assert below < lower < rate < higher < above


@pytest.mark.parametrize("method", plan.METHODS)
def test_every_method_draws_as_many_trajectories_an_iteration(method: str) -> None:
    rate, beta = plan.settings(method)[0]
    training = plan.job(Trial("final", plan.REWARDS[0], method, rate, beta, 3), 16).spec.training
    samples = training.prompts_per_iteration * training.samples_per_prompt
    assert samples * (2 if method == "d3po" else 1) == plan.IMAGES
    assert training.seed == 3


def test_one_iteration_is_run_counted_and_judged(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BUDGET", 1.0)
    trial = Trial("final", "colourfulness", "d3po", 1e-3, 0.1, 0)
    found = sweep.run_trial(trial, tmp_path, str(tiny_pipeline), 4)
    first, last = found["evaluations"]
    assert found["error"] is None
    assert (first["images"], last["images"]) == (0, plan.IMAGES), "a pair is two trajectories"
    assert last["reward_queries"] == plan.IMAGES
    assert 0 <= last["named"] <= 1
    assert set(last["rewards"]) == set(plan.REWARDS)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"], "the run's own folder is gone"


def test_a_killed_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    kill_at = [90]

    def run_trial(trial: Trial, folder: Path) -> dict[str, Any]:
        if len(run) == kill_at[0]:
            raise KeyboardInterrupt
        run.append(trial.key)
        return result([0.0, trial.learning_rate], **vars(trial), key=trial.key, seconds=1.0)

    monkeypatch.setattr(sweep, "run_trial", run_trial)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(tmp_path, report=lambda line: None)
    path = tmp_path / "trials.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-10], encoding="utf-8")  # the last line is incomplete
    kill_at[0] = -1
    sweep.run(tmp_path, report=lambda line: None)
    assert Counter(Counter(run).values()) == {1: len(set(run)) - 1, 2: 1}
    files.write(files.read(path), tmp_path / "results.json")
    assert files.read(tmp_path / "results.json") == files.read(path)


def test_the_committed_results_are_those_of_the_plan() -> None:
    grid, best = (analysis.chosen(some, plan.SPOILT) for some in (analysis.grid(RESULTS), RESULTS))
    planned = [*plan.tuning(), *plan.refinement(grid), *plan.finals(best)]
    assert sorted(found["key"] for found in RESULTS) == sorted(trial.key for trial in planned)
    for found in analysis.of(RESULTS, stage="final"):
        assert analysis.cost(found, "flops")[-1] >= plan.BUDGET
        assert all(earlier < later for earlier, later in pairwise(analysis.cost(found, "images")))
    assert files.RESULTS.stat().st_size < 500_000


def test_the_committed_page_is_what_the_results_say() -> None:
    assert page.markdown(RESULTS) == files.PAGE.read_text(encoding="utf-8")
