"""Reads the comparison off what `sweep` has written: pure functions, without torch.

Changes are those of a run's own held-out pictures since before its first iteration, on the same noise.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from benchmarks.methods import plan
from benchmarks.methods.files import Result
from benchmarks.methods.plan import Setting
from tailorpo_trainer.stats import mean, standard_error, t_quantile

AXES = ("images", "reward_queries", "flops")
"""What can be held equal."""


@dataclass(frozen=True)
class Reading:
    """One number of each seed. error: standard error of the mean over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def error(self) -> float:
        return standard_error(self.values)

    @property
    def differs_from_zero(self) -> bool:
        """Whether Student's 95 % interval over the seeds leaves 0 out."""
        return abs(self.mean) > t_quantile(len(self.values) - 1) * self.error


def of(results: Sequence[Result], **wanted: Any) -> list[Result]:
    """Those whose fields are as wanted, such as `stage="final", method="spo"`."""
    return [result for result in results if all(result[key] == value for key, value in wanted.items())]


def chosen(results: Sequence[Result], spoilt: float) -> dict[tuple[str, str], Setting]:
    """By reward and method, the setting whose tuning run ended with the greatest held-out reward.

    Of those that lost no more than the share `spoilt` of pictures in the judge's eyes, or of all where all did.
    """
    best: dict[tuple[str, str], Result] = {}
    for result in of(results, stage="tuning", error=None):
        at = result["reward"], result["method"]
        if at not in best or rank(result, spoilt) > rank(best[at], spoilt):
            best[at] = result
    return {at: (result["learning_rate"], result["beta"]) for at, result in best.items()}


def grid(results: Sequence[Result]) -> list[Result]:
    """Those of the plan's first tuning trials."""
    keys = {trial.key for trial in plan.tuning()}
    return [result for result in results if result["key"] in keys]


def rank(result: Result, spoilt: float) -> tuple[bool, float]:
    """What tuning prefers the greatest of."""
    return round(change(result, "named")[-1] + spoilt, 6) >= 0, end(result)


def end(result: Result) -> float:
    """Held-out reward of the last evaluation."""
    return float(result["evaluations"][-1]["rewards"][result["reward"]])


def spent(result: Result, axis: str) -> list[float]:
    """What each evaluation had cost by then, in units of an axis."""
    if axis == "flops":
        return [evaluation["iteration"] * result["flops_per_iteration"] for evaluation in result["evaluations"]]
    return [float(evaluation[axis]) for evaluation in result["evaluations"]]


def change(result: Result, quantity: str) -> list[float]:
    """From the first evaluation to each: of a reward by its name, of `diversity`, of the share `named` right."""
    values = [evaluation["rewards"].get(quantity, evaluation.get(quantity)) for evaluation in result["evaluations"]]
    return [value - values[0] for value in values]


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear between neighbours. ValueError outside of what was measured: nothing is extrapolated."""
    if not xs[0] <= x <= xs[-1]:
        raise ValueError(f"{x:g} is outside of {xs[0]:g} .. {xs[-1]:g}")
    right = max(1, bisect_left(xs, x))
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def budget(results: Sequence[Result], axis: str) -> float:
    """The largest that all of some runs have reached."""
    return min(spent(result, axis)[-1] for result in results)


def points(results: Sequence[Result]) -> list[tuple[str, float]]:
    """The budgets that finals are compared at, as axis and amount: what all reached, and what was tuned for."""
    reached = [(axis, budget(results, axis)) for axis in AXES]
    return [*reached[:-1], ("flops", plan.TUNING_BUDGET), reached[-1]]


def whole_seeds(results: Sequence[Result]) -> list[Result]:
    """Without finals of seeds that not every method and reward has been run with yet."""
    runs = len(plan.METHODS) * len(plan.REWARDS)
    finals = Counter(result["seed"] for result in of(results, stage="final"))
    return [result for result in results if result["stage"] != "final" or finals[result["seed"]] == runs]


def read(results: Sequence[Result], axis: str, at: float, quantity: str) -> Reading:
    """The change of a quantity at a budget, of each run (a seed each) in the order of seeds."""
    ordered = sorted(results, key=lambda result: result["seed"])
    return Reading(tuple(interpolated(spent(one, axis), change(one, quantity), at) for one in ordered))


def indistinct(readings: dict[str, Reading]) -> list[tuple[str, str]]:
    """Pairs whose difference, seed by seed, has 0 within Student's 95 % interval."""
    return [
        (one, other)
        for one, other in combinations(readings, 2)
        if not Reading(
            tuple(a - b for a, b in zip(readings[one].values, readings[other].values, strict=True))
        ).differs_from_zero
    ]
