"""The plot of `docs/methods-compared.md`: the held-out reward against each of the three budgets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.methods import analysis, plan
from benchmarks.methods.files import Result

COLOURS = {
    "tailorpo": "#0072B2",
    "tailorpo-g": "#009E73",
    "spo": "#CC79A7",
    "d3po": "#D55E00",
    "ddpo": "#E69F00",
}
"""The palette of Okabe and Ito, which people with colour blindness can distinguish."""
LABELS = {
    "images": "images (trajectories)",
    "reward_queries": "reward queries, logarithmic",
    "flops": "TFLOP of training",
}
UNITS = {"images": 1.0, "reward_queries": 1.0, "flops": 1e12}
INK, GRID = "#333333", "#e3e3e3"


def draw(results: Sequence[Result], to: Path) -> None:
    """A row for each reward, a column for each budget."""
    with plt.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#999999"}):
        figure, axes = plt.subplots(
            len(plan.REWARDS), len(analysis.AXES), figsize=(12.5, 7.4), sharey="row", squeeze=False
        )
        for row, reward in enumerate(plan.REWARDS):
            finals = analysis.of(results, stage="final", reward=reward)
            for column, axis in enumerate(analysis.AXES):
                _panel(axes[row, column], finals, reward, axis)
            axes[row, 0].set_ylabel(f"change of held-out {reward}")
        for column, axis in enumerate(analysis.AXES):
            axes[0, column].set_title(
                f"equal {axis.replace('_', ' ').replace('flops', 'FLOPs')}", fontsize=11, weight="bold"
            )
            axes[-1, column].set_xlabel(LABELS[axis])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize=11)
        figure.tight_layout(rect=(0, 0, 1, 0.95), w_pad=1.5, h_pad=1.5)
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, dpi=110)
        plt.close(figure)


def _panel(axes: Any, finals: Sequence[Result], reward: str, axis: str) -> None:
    unit, budget = UNITS[axis], analysis.budget(finals, axis)
    widest = max(analysis.cost(run, axis)[-1] for run in finals)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.axvline(budget / unit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if axis == "flops":
        axes.axvline(plan.TUNING_BUDGET / unit, color=INK, linewidth=1, linestyle=(0, (1, 3)))
    for number, (method, colour) in enumerate(COLOURS.items()):
        runs = analysis.of(finals, method=method)
        least = min(analysis.cost(run, axis)[1] for run in runs)
        most = analysis.budget(runs, axis)
        # A logarithmic axis has no 0, so curves begin at a tenth of the first evaluation.
        xs = np.geomspace(least / 10, most, 60) if axis == "reward_queries" else np.linspace(0, most, 60)
        xs[-1] = most  # rounding must not exceed the measured range
        readings = [analysis.read(runs, axis, float(x), reward) for x in xs]
        means, errors = np.array([r.mean for r in readings]), np.array([r.error for r in readings])
        whole = np.array([analysis.read(runs, axis, float(x), "named").mean for x in xs]) >= -plan.SPOILT
        spoilt = int(np.argmin(whole)) if not whole.all() else len(xs)
        axes.plot(xs[:spoilt] / unit, means[:spoilt], color=colour, linewidth=2, label=method, zorder=3)
        rest = slice(max(0, spoilt - 1), None)
        axes.plot(xs[rest] / unit, means[rest], color=colour, linewidth=2, linestyle=(0, (1, 1.2)), zorder=3)
        axes.fill_between(xs / unit, means - errors, means + errors, color=colour, alpha=0.18, linewidth=0, zorder=2)
        seeds = analysis.read(runs, axis, budget, reward).values
        aside = number - (len(COLOURS) - 1) / 2  # side by side, so that no dot hides another
        x = budget * (1 + 0.06 * aside) if axis == "reward_queries" else budget + 0.009 * aside * widest
        axes.scatter([x / unit] * len(seeds), seeds, s=18, color=colour, edgecolor="white", linewidth=0.6, zorder=4)
    if axis == "reward_queries":
        axes.set_xscale("log")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
