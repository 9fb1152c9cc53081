"""The values of the curves as tables, for readers without a pointer."""

from collections.abc import Mapping
from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Run, value
from tailorpo_trainer.report.sections.curves import is_pairless, logit_name
from tailorpo_trainer.stats import Value

TABLE_ROWS = 50
"""Largest number of rows; longer runs show evenly spaced lines."""

KEYS = {
    "reward": "reward",
    "gap": "gap",
    "loss": "loss",
    "implicit_accuracy": "implicit accuracy",
    "gradient_norm": "gradient norm",
    "logit": "{logit}",
    "logit_abs": "|{logit}|",
}
"""Values of an iteration, with the names of their columns; columns without a value are left out."""


def tables(run: Run, terms: list[str]) -> list[dict[str, Any]]:
    """Tables of evaluations and of iterations. terms: names of the rewards that are maximised."""
    names = list(dict.fromkeys(name for e in run.evaluations for name in e.rewards))
    names = [name for name in names if [name] != terms]  # a single reward is the reward column already
    shown = [run.evaluations[k] for k in stats.pick(len(run.evaluations), TABLE_ROWS)]
    evaluations: dict[str, list[Value]] = {
        "reward": [e.reward for e in shown],
        "standard error": [e.error for e in shown],
        **{name: [e.rewards.get(name) for e in shown] for name in names},
        "diversity": [e.diversity for e in shown],
        "feature diversity": [e.feature_diversity for e in shown],
    }
    lines = [run.iterations[k] for k in stats.pick(len(run.iterations), TABLE_ROWS)]
    logit = logit_name(is_pairless(run.job.spec.method.name))
    figures = {name.format(logit=logit): [value(line.get(key)) for line in lines] for key, name in KEYS.items()}
    images = [number_format.count(value((line.get("totals") or {}).get("images"))) for line in lines]
    return [
        _table("Evaluations", [[number_format.count(e.iteration)] for e in shown], ["iteration"], evaluations)
        | {"total": len(run.evaluations)},
        _table(
            "Iterations",
            [[number_format.count(int(line["iteration"])), total] for line, total in zip(lines, images, strict=True)],
            ["iteration", "images"],
            figures,
        )
        | {"total": len(run.iterations)},
    ]


def _table(title: str, begin: list[list[str]], head: list[str], columns: Mapping[str, list[Value]]) -> dict[str, Any]:
    """A table whose rows begin with some cells, without columns that have no value."""
    known = {name: column for name, column in columns.items() if any(cell is not None for cell in column)}
    texts = [number_format.column(column) for column in known.values()]
    rows = [[*first, *(text[k] for text in texts)] for k, first in enumerate(begin)]
    return {"title": title, "head": [*head, *known], "rows": rows}
