"""The charts of a run, and the values of their axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report.charts import POINTS, Chart, Grid, downsample
from tailorpo_trainer.report.run_data import Evaluation, Run, numbers, value
from tailorpo_trainer.report.sections.costs import flops_of
from tailorpo_trainer.report.svg_paths import Series
from tailorpo_trainer.stats import Value

AXIS_KEYS = {
    "images": "images",
    "queries": "reward_queries",
    "forwards": "denoiser_forwards",
    "seconds": "seconds",
}
"""Key of an axis in the page -> key of a line's `totals`."""

FIGURES = (
    "reward",
    "gap",
    "loss",
    "implicit_accuracy",
    "gradient_norm",
    "logit",
    "logit_abs",
    "clamped",
    "tied",
    "rank_agreement",
)
"""Values of a line of kind `iteration` that are drawn."""

Z95 = 1.959964

DIVERSITIES = (
    ("diversity", "Diversity", "RMS difference"),
    ("feature_diversity", "Feature diversity", "cosine distance of CLIP embeddings"),
)
"""Attribute of an evaluation, title, and what is averaged."""


def training_grid(run: Run) -> tuple[Grid, dict[str, list[Value]]]:
    """x values of the iterations by axis, and y values by name, downsampled together."""
    lines = run.iterations
    rows: dict[str, list[Value]] = {"x:iterations": [float(line["iteration"]) for line in lines]}
    for axis, key in AXIS_KEYS.items():
        rows[f"x:{axis}"] = [value((line.get("totals") or {}).get(key)) for line in lines]
    if run.cost:
        rows["x:flops"] = [flops_of(numbers(line.get("totals")), run.cost) for line in lines]
    for key in FIGURES:
        rows[key] = [value(line.get(key)) for line in lines]
    downsampled = downsample(rows)
    grid = {
        key[2:]: row for key, row in downsampled.items() if key.startswith("x:") and any(x is not None for x in row)
    }
    return grid, {key: row for key, row in downsampled.items() if not key.startswith("x:")}


def evaluation_grid(run: Run) -> tuple[Grid, list[Evaluation]]:
    """x values of the evaluations by axis, and the evaluations that are shown."""
    shown = [run.evaluations[k] for k in stats.pick(len(run.evaluations), POINTS)]
    grid: dict[str, list[Value]] = {"iterations": [float(evaluation.iteration) for evaluation in shown]}
    for axis, key in AXIS_KEYS.items():
        grid[axis] = [evaluation.totals.get(key, None if evaluation.iteration else 0.0) for evaluation in shown]
    if run.cost:
        grid["flops"] = [flops_of(evaluation.totals, run.cost) for evaluation in shown]
    return {axis: row for axis, row in grid.items() if any(x is not None for x in row)}, shown


def reward_series(shown: Sequence[Evaluation], grid: str = "evaluation", name: str = "", colour: str = "c0") -> Series:
    """Evaluation reward with the 95 % interval of its mean."""
    widths = [None if e.error is None or e.images < 2 else e.error * stats.t_quantile(e.images - 1) for e in shown]
    y = [e.reward for e in shown]
    return Series(name or "held-out reward", grid, y, colour, _bound(y, widths, -1), _bound(y, widths, 1))


def change_series(shown: Sequence[Evaluation], grid: str = "evaluation", name: str = "", colour: str = "c0") -> Series:
    """Difference to the first evaluation, paired by picture, with its 95 % interval."""
    found = [stats.paired(shown[0].scores, e.scores) for e in shown]
    mean, low, high = (
        [None if difference is None else getattr(difference, key) for difference in found]
        for key in ("mean", "low", "high")
    )
    return Series(name or "change", grid, mean, colour, low, high)


def diversity_series(
    shown: Sequence[Evaluation], key: str, grid: str = "evaluation", name: str = "", colour: str = "c1"
) -> Series:
    """One of `DIVERSITIES`, with its 95 % interval where its standard error is known."""
    y: list[Value] = [getattr(e, key) for e in shown]
    errors: list[Value] = [getattr(e, f"{key}_error") for e in shown]
    if all(error is None for error in errors):
        return Series(name or key.replace("_", " "), grid, y, colour)
    widths = [None if error is None else Z95 * error for error in errors]
    return Series(name or key.replace("_", " "), grid, y, colour, _bound(y, widths, -1), _bound(y, widths, 1))


def evaluation_charts(shown: Sequence[Evaluation], terms: Sequence[str]) -> list[Chart]:
    """Held-out reward, its paired change, each term, each watched reward, diversity. terms: the rewards maximised."""
    if not shown:
        return []
    charts = [Chart("reward", "Held-out reward", [reward_series(shown)], "mean and its 95 % interval", wide=True)]
    series = change_series(shown)
    if len(shown) > 1 and any(y is not None for y in series.y):
        note = "paired by picture: same prompt, same noise; 95 % interval"
        charts.append(Chart("change", "Change since the first evaluation", [series], note, level=0, wide=True))
    names = list(dict.fromkeys(name for e in shown for name in e.rewards))
    for number, name in enumerate(names):
        if list(terms) == [name]:  # a single reward is the first chart already
            continue
        y = [e.rewards.get(name) for e in shown]
        widths = [None if (error := e.errors.get(name)) is None else Z95 * error for e in shown]
        watched = any(name in e.watched for e in shown)
        series = Series(name, "evaluation", y, "c1" if watched else "c0", _bound(y, widths, -1), _bound(y, widths, 1))
        note = "watched, not maximised" if watched else "a term of the reward"
        charts.append(Chart(f"part{number}", name, [series], note, watched=watched))
    for key, title, what in DIVERSITIES:
        series = diversity_series(shown, key)
        note = f"{what} of pictures of one prompt; 95 % interval" if series.low else f"{what} of pictures of one prompt"
        charts.append(Chart(key.replace("_", "-"), title, [series], note, watched=True))
    return charts


def training_charts(y: Mapping[str, Sequence[Value]], method: str) -> list[Chart]:
    """One small chart for each measured value of an iteration; charts without a value are not drawn."""
    pairless = is_pairless(method)
    preference: dict[str, Any] = {"level": math.log(2), "level_name": "log 2: no preference yet"}
    if pairless or any(y["tied"]):  # a pair without a winner adds 0, so that log 2 means nothing
        preference = {}
    charts = [
        _training_chart(y, "reward", "Training reward", "of all pictures that were scored"),
        _training_chart(y, "gap", "Reward gap", "winner minus loser"),
        _training_chart(
            y, "loss", "Loss", "pairs without a winner add 0" if any(y["tied"]) else "", scale=1.0, **preference
        ),
        _training_chart(
            y,
            "implicit_accuracy",
            "Implicit accuracy",
            "pairs that the policy orders as the reward does",
            bounds=(0.0, 1.0),
            level=0.5,
            level_name="chance: 0.5",
        ),
        _training_chart(y, "gradient_norm", "Gradient norm", "before clipping"),
        _logits(y, pairless),
    ]
    if any(y["clamped"]):
        charts.append(_training_chart(y, "clamped", "Clamped ratios", "share without a gradient", bounds=(0.0, 1.0)))
    if any(y["tied"]):
        note = "share that weighs nothing"
        charts.append(_training_chart(y, "tied", "Pairs without a winner", note, bounds=(0.0, 1.0)))
    if any(value is not None for value in y["rank_agreement"]):
        note = "pairs that the scoring decoder orders as the model's own does"
        series = [Series("rank agreement", "training", y["rank_agreement"], "c1")]
        level: dict[str, Any] = {"level": 0.5, "level_name": "chance: 0.5", "bounds": (0.0, 1.0)}
        charts.append(Chart("training-rank_agreement", "Rank agreement", series, note, **level))
    return charts


def is_pairless(method: str) -> bool:
    """Whether a method has no pairs of a winner and a loser."""
    return method == "ddpo"


def logit_name(pairless: bool) -> str:
    """What a line's `logit` is: without pairs, the logarithm of a likelihood ratio."""
    return "log ratio" if pairless else "logit"


def window(points: int) -> int:
    """How many points the smoothed training curve averages; 1 for short runs."""
    return max(1, points // 20) | 1


def _training_chart(y: Mapping[str, Sequence[Value]], key: str, title: str, note: str, **more: Any) -> Chart:
    row = y[key]
    width = window(len(row))
    series = [Series(title.lower(), "training", row, "c0")]
    if width > 1:
        smooth = Series(f"mean of {width}", "training", stats.moving_mean(row, width), "c0")
        series = [Series(title.lower(), "training", row, "c0", faint=True), smooth]
    return Chart(f"training-{key}", title, series, note, **more)


def _logits(y: Mapping[str, Sequence[Value]], pairless: bool) -> Chart:
    name = logit_name(pairless)
    series = [
        Series("mean", "training", y["logit"], "c0"),
        Series(f"mean of |{name}|", "training", y["logit_abs"], "c1"),
    ]
    title = "Log ratio" if pairless else "Preference logit"
    note = "above 0: the policy prefers the winner"
    if pairless:
        note = "log of the new over the old likelihood; 0 in the first update of an iteration"
    return Chart("training-logit", title, series, note, level=0, level_name="")


def _bound(y: Sequence[Value], widths: Sequence[Value], sign: int) -> list[Value]:
    return [None if m is None or w is None else m + sign * w for m, w in zip(y, widths, strict=True)]
