"""`docs/metrics.md` as tests read it: its tables and queries, and what an expression of PromQL selects."""

import re
from pathlib import Path
from typing import NamedTuple

import promql_parser
from prometheus_client import Metric

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
IDENTITY = frozenset({"job_namespace", "job_name"})


class Row(NamedTuple):
    """A row of a table. name: with `_total` for a counter. labels: besides `IDENTITY`. alerts: those that read it."""

    name: str
    kind: str
    labels: frozenset[str]
    alerts: str = ""


def table(heading: str) -> dict[str, Row]:
    """The rows below a heading, by name."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `tailorpo_")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = [
        Row(name.strip("`"), kind, frozenset(re.findall(r"\w+", labels)), *alerts)
        for name, kind, labels, _unit, _meaning, *alerts in cells
    ]
    return {row.name: row for row in rows}


RUN, OPERATOR = table("The metrics of a run"), table("The metrics of the operator")
ACCELERATOR = {name for name in RUN if name.startswith("tailorpo_accelerator_")} | {"tailorpo_peak_flops"}
"""Metrics of a run that only an accelerator has."""

QUERIES = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)


def written(family: Metric) -> str:
    """A family's name as the page has it."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def selected(expression: str) -> set[str]:
    """Metrics that an expression reads; it must be PromQL, and its labels those of the page."""
    rows = RUN | OPERATOR
    names: set[str] = set()

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            assert part.name is not None
            name = part.name if part.name in rows else re.sub(r"_(sum|count|bucket)$", "", part.name)
            assert {matcher.name for matcher in part.matchers.matchers} <= rows[name].labels | IDENTITY
            names.add(name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names
