"""The tables of `docs/methods-compared.md`: the results for each reward, and the tuning trials."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from benchmarks.methods import analysis, plan
from benchmarks.methods.analysis import Estimate
from benchmarks.methods.files import Result
from tailorpo_trainer.stats import mean

AXIS_NAMES = {"images": "images", "reward_queries": "reward queries", "flops": "FLOPs"}
DECIMALS = {"colourfulness": 1, "clip-score": 2}


def of_reward(results: Sequence[Result], reward: str) -> Iterator[str]:
    """The results of the finals on a reward at equal budgets, and which differences are significant."""
    finals = analysis.of(results, stage="final", reward=reward)
    by_method = {method: analysis.of(finals, method=method) for method in plan.METHODS}
    points, digits = analysis.points(finals), DECIMALS[reward]
    base = mean([run["evaluations"][0]["rewards"][reward] for run in finals])
    yield f"## Trained on `{reward}`\n"
    yield f"Change of the held-out reward, from {base:.{digits}f} before; ± is the standard error over the seeds. †: by"
    yield f"then the judge names over {100 * plan.SPOILT:.0f} points fewer animals right than before, on average.\n"
    yield "| method | " + " | ".join(f"at {amount(*point)}" for point in points) + " |"
    yield "|---|" + "--:|" * len(points)
    for method, runs in by_method.items():
        cells = []
        for point in points:
            spoilt = analysis.read(runs, *point, "named").mean < -plan.SPOILT
            cells.append(_signed(analysis.read(runs, *point, reward), digits) + (" †" if spoilt else ""))
        yield f"| `{method}` | " + " | ".join(cells) + " |"
    yield ""
    for point in points:
        yield f"- At {amount(*point)}: {_ranking({m: analysis.read(r, *point, reward) for m, r in by_method.items()})}"
    yield ""
    yield from _side_effects(by_method, reward, [at for axis, at in points if axis == "flops"])


def _ranking(readings: Mapping[str, Estimate]) -> str:
    """The order by mean, and the shorter of two lists: significantly different pairs, or the other pairs."""
    order = sorted(readings, key=lambda method: -readings[method].mean)
    alike = analysis.indistinguishable({method: readings[method] for method in order})
    apart = [pair for pair in combinations(order, 2) if pair not in alike]
    unmoved = [method for method in order if not readings[method].differs_from_zero]
    text = f"{' > '.join(f'`{method}`' for method in order)} by mean. "
    if not apart:
        text += "No pair is told apart."
    elif len(apart) < len(alike):
        text += "Told apart are only " + ", ".join(f"`{one}` > `{other}`" for one, other in apart) + "."
    elif alike:
        text += "Not told apart: " + ", ".join(f"`{one}`/`{other}`" for one, other in alike) + "."
    else:
        text += "All pairs are told apart."
    if unmoved:
        text += " Not told apart from no change: " + ", ".join(f"`{method}`" for method in unmoved) + "."
    return text


def _side_effects(by_method: Mapping[str, Sequence[Result]], reward: str, budgets: Sequence[float]) -> Iterator[str]:
    """The quantities that were not maximised, at equal FLOPs."""
    (watched,) = (name for name in plan.REWARDS if name != reward)
    yield "What training did besides, at equal FLOPs. The judge is a classifier that is never a reward: the share of"
    yield f"{plan.EVALUATED} pictures a seed in which it names the animal that was asked for.\n"
    head = [f"{what} at {amount('flops', at)}" for what in (watched, "diversity", "judge") for at in budgets]
    yield f"| method | {' | '.join(head)} |"
    yield "|---|" + "--:|" * len(head)
    for method, runs in by_method.items():
        before = mean([run["evaluations"][0]["named"] for run in runs])
        cells = [_signed(analysis.read(runs, "flops", at, watched), DECIMALS[watched]) for at in budgets]
        cells += [_signed(analysis.read(runs, "flops", at, "diversity"), 3) for at in budgets]
        for at in budgets:
            named = analysis.read(runs, "flops", at, "named")
            cells.append(f"{before + named.mean:.0%} ± {100 * named.error:.0f}")
        yield f"| `{method}` | " + " | ".join(cells) + " |"
    first = mean([run["evaluations"][0]["named"] for runs in by_method.values() for run in runs])
    yield f"\nBefore training the judge named {first:.1%} right."


def of_tuning(results: Sequence[Result]) -> Iterator[str]:
    """All tuning trials, and the chosen settings."""
    trials = analysis.of(results, stage="tuning")
    first, best = (analysis.chosen(some, plan.SPOILT) for some in (analysis.grid(trials), trials))
    grid = len(plan.settings(plan.METHODS[0]))
    yield "## Tuning\n"
    yield (
        f"The same number of trials for each method and reward: a grid of {grid}, then two half-way to the neighbours "
        f"of its best learning rate; each {plan.TUNING_BUDGET / 1e12:g} TFLOP, on seed {plan.TUNING_SEED}, which no "
        "final uses. The greatest held-out reward at the end wins (bold), but no setting that lost more than "
        f"{plan.SPOILT:.0%} of the pictures in the judge's eyes (†): such a one is rewarded for pictures of nothing. "
        "DDPO has no β, so its grid has as many learning rates over the same range. Change of the held-out reward, by "
        "β and learning rate:\n"
    )
    for reward in plan.REWARDS:
        columns = [f"β {beta:g}, {rate:g}" for beta in plan.BETAS for rate in plan.LEARNING_RATES]
        yield f"| {reward} | {' | '.join(columns)} | finer | finer |"
        yield "|---|" + "--:|" * (grid + 2)
        for method in plan.METHODS:
            rate, beta = first[reward, method]
            named = [(near, beta) for near in plan.finer(method, rate)]
            settings = [*plan.settings(method), *named]
            cells = [_trial(trials, reward, method, setting, best[reward, method]) for setting in settings]
            for number, (near, _) in enumerate(settings):
                if method == "ddpo" or number >= grid:
                    cells[number] = f"{near:g}: {cells[number]}"
            yield f"| `{method}` | " + " | ".join(cells) + " |"
        yield ""
    yield (
        "Chosen: "
        + "; ".join(
            f"{reward}: " + ", ".join(f"`{method}` {_setting(best[reward, method])}" for method in plan.METHODS)
            for reward in plan.REWARDS
        )
        + "."
    )
    apart = " and ".join(f"{_beta(trials, reward)} ({reward})" for reward in plan.REWARDS)
    yield (
        "\nThe optimiser divides β out while logits are small: where pictures stayed whole, trials that differ in β "
        f"alone ended within {apart} of each other."
    )


def _beta(trials: Sequence[Result], reward: str) -> str:
    """The largest difference between values of beta, over settings whose pictures the judge still recognises."""
    ends: dict[tuple[str, float], list[float]] = defaultdict(list)
    for trial in analysis.of(trials, reward=reward, error=None):
        if trial["beta"] is not None and analysis.rank(trial, plan.SPOILT)[0]:
            ends[trial["method"], trial["learning_rate"]].append(analysis.end(trial))
    return f"{max(max(values) - min(values) for values in ends.values()):.{DECIMALS[reward]}f}"


def _setting(setting: plan.Setting) -> str:
    rate, beta = setting
    return f"{rate:g}" if beta is None else f"{rate:g} (β {beta:g})"


def _trial(trials: Sequence[Result], reward: str, method: str, setting: plan.Setting, best: plan.Setting) -> str:
    (found,) = analysis.of(trials, reward=reward, method=method, learning_rate=setting[0], beta=setting[1])
    if found["error"]:
        return "failed"
    text = f"{analysis.change(found, reward)[-1]:+.{DECIMALS[reward]}f}"
    whole, _ = analysis.rank(found, plan.SPOILT)
    return f"**{text}**" if setting == best else text if whole else f"{text} †"


def amount(axis: str, value: float) -> str:
    """A budget as text."""
    return f"{value / 1e12:.1f} TFLOP" if axis == "flops" else f"{value:g} {AXIS_NAMES[axis]}"


def _signed(found: Estimate, digits: int) -> str:
    return f"{found.mean:+.{digits}f} ± {found.error:.{digits}f}"
