"""The curves' figures as tables, for readers without a pointer."""

from typing import Any

from tailorpo_trainer.report import measures, wording
from tailorpo_trainer.report.measures import Value
from tailorpo_trainer.report.reading import Run, value

TABLE_ROWS = 50
"""Longer runs show every so many lines."""

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
    """Of evaluations and of iterations. terms: names of the rewards that are maximised."""
    names = list(dict.fromkeys(name for e in run.evaluations for name in e.rewards))
    names = [name for name in names if [name] != terms]  # one reward alone is the reward
    evaluations: list[list[str]] = []
    for k in measures.pick(len(run.evaluations), TABLE_ROWS):
        e = run.evaluations[k]
        cells: list[Value] = [e.reward, e.error, *(e.rewards.get(name) for name in names), e.diversity]
        evaluations.append([wording.count(e.iteration), *(wording.number(cell) for cell in cells)])
    iterations = []
    for k in measures.pick(len(run.iterations), TABLE_ROWS):
        line = run.iterations[k]
        total = value((line.get("totals") or {}).get("images"))
        figures = [wording.number(value(line.get(key))) for key in KEYS]
        iterations.append([wording.count(int(line["iteration"])), wording.count(total), *figures])
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
