"""Analysis of the results of `sweep`: pure functions, without torch.

Changes are those of a run's held-out pictures since before its first iteration, on the same noise.
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
"""The budgets at which methods are compared."""


@dataclass(frozen=True)
class Estimate:
    """One quantity of each seed. error: standard error of the mean over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def error(self) -> float:
        return standard_error(self.values)

    @property
    def differs_from_zero(self) -> bool:
        """Whether Student's 95 % interval over the seeds excludes 0."""
        return abs(self.mean) > t_quantile(len(self.values) - 1) * self.error


def of(results: Sequence[Result], **wanted: Any) -> list[Result]:
    """The results with these fields, such as `stage="final", method="spo"`."""
    return [result for result in results if all(result[key] == value for key, value in wanted.items())]


def chosen(results: Sequence[Result], spoilt: float) -> dict[tuple[str, str], Setting]:
    """For each reward and method, the setting whose tuning run ended with the greatest held-out reward.

    Settings in which the judge recognises fewer animals, by more than the share `spoilt`, are used only if there is no
    other.
    """
    best: dict[tuple[str, str], Result] = {}
    for result in of(results, stage="tuning", error=None):
        at = result["reward"], result["method"]
        if at not in best or rank(result, spoilt) > rank(best[at], spoilt):
            best[at] = result
    return {at: (result["learning_rate"], result["beta"]) for at, result in best.items()}


def grid(results: Sequence[Result]) -> list[Result]:
    """The results of the plan's tuning grid."""
    keys = {trial.key for trial in plan.tuning()}
    return [result for result in results if result["key"] in keys]


def rank(result: Result, spoilt: float) -> tuple[bool, float]:
    """The key by which tuning selects the maximum."""
    return round(change(result, "named")[-1] + spoilt, 6) >= 0, end(result)


def end(result: Result) -> float:
    """The held-out reward of the last evaluation."""
    return float(result["evaluations"][-1]["rewards"][result["reward"]])


def cost(result: Result, axis: str) -> list[float]:
    """The cost of training before each evaluation, in units of an axis."""
    if axis == "flops":
        return [evaluation["iteration"] * result["flops_per_iteration"] for evaluation in result["evaluations"]]
    return [float(evaluation[axis]) for evaluation in result["evaluations"]]


def change(result: Result, quantity: str) -> list[float]:
    """The change since the first evaluation: of a reward by its name, of `diversity`, or of the accuracy `named`."""
    values = [evaluation["rewards"].get(quantity, evaluation.get(quantity)) for evaluation in result["evaluations"]]
    return [value - values[0] for value in values]


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear interpolation. Raises `ValueError` outside of the measured range: nothing is extrapolated."""
    if not xs[0] <= x <= xs[-1]:
        raise ValueError(f"{x:g} is outside of {xs[0]:g} .. {xs[-1]:g}")
    right = max(1, bisect_left(xs, x))
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def budget(results: Sequence[Result], axis: str) -> float:
    """The largest budget that all of these runs have reached."""
    return min(cost(result, axis)[-1] for result in results)


def points(results: Sequence[Result]) -> list[tuple[str, float]]:
    """The budgets of the comparison of finals, as axis and amount: those that all reached, and that of tuning."""
    reached = [(axis, budget(results, axis)) for axis in AXES]
    return [*reached[:-1], ("flops", plan.TUNING_BUDGET), reached[-1]]


def whole_seeds(results: Sequence[Result]) -> list[Result]:
    """The results without finals of seeds that have not been run for all methods and rewards yet."""
    runs = len(plan.METHODS) * len(plan.REWARDS)
    finals = Counter(result["seed"] for result in of(results, stage="final"))
    return [result for result in results if result["stage"] != "final" or finals[result["seed"]] == runs]


def read(results: Sequence[Result], axis: str, at: float, quantity: str) -> Estimate:
    """The change of a quantity at a budget, for each run (one a seed) in the order of the seeds."""
    ordered = sorted(results, key=lambda result: result["seed"])
    return Estimate(tuple(interpolated(cost(one, axis), change(one, quantity), at) for one in ordered))


def indistinguishable(readings: dict[str, Estimate]) -> list[tuple[str, str]]:
    """Pairs for which Student's 95 % interval of the difference, seed by seed, includes 0."""
    return [
        (one, other)
        for one, other in combinations(readings, 2)
        if not Estimate(
            tuple(a - b for a, b in zip(readings[one].values, readings[other].values, strict=True))
        ).differs_from_zero
    ]
