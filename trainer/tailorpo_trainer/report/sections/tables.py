"""The values of the curves as tables, for readers without a pointer."""

from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Run, value
from tailorpo_trainer.stats import Value

TABLE_ROWS = 50
"""Largest number of rows; longer runs show evenly spaced lines."""

KEYS = {
    "reward": "reward",
    "gap": "gap",
    "loss": "loss",
    "implicit_accuracy": "implicit accuracy",
    "gradient_norm": "gradient norm",
    "logit": "logit",
    "logit_abs": "|logit|",
}


def tables(run: Run, terms: list[str]) -> list[dict[str, Any]]:
    """Tables of evaluations and of iterations. terms: names of the rewards that are maximised."""
    names = list(dict.fromkeys(name for e in run.evaluations for name in e.rewards))
    names = [name for name in names if [name] != terms]  # a single reward is the reward column already
    evaluations: list[list[str]] = []
    for k in stats.pick(len(run.evaluations), TABLE_ROWS):
        e = run.evaluations[k]
        cells: list[Value] = [e.reward, e.error, *(e.rewards.get(name) for name in names), e.diversity]
        evaluations.append([number_format.count(e.iteration), *(number_format.number(cell) for cell in cells)])
    iterations = []
    for k in stats.pick(len(run.iterations), TABLE_ROWS):
        line = run.iterations[k]
        total = value((line.get("totals") or {}).get("images"))
        figures = [number_format.number(value(line.get(key))) for key in KEYS]
        iterations.append([number_format.count(int(line["iteration"])), number_format.count(total), *figures])
    return [
        {
            "title": "Evaluations",
            "head": ["iteration", "reward", "standard error", *names, "diversity"],
            "rows": evaluations,
            "total": len(run.evaluations),
        },
        {
            "title": "Iterations",
            "head": ["iteration", "images", *KEYS.values()],
            "rows": iterations,
            "total": len(run.iterations),
        },
    ]
