"""The dashboards of the chart, as tests read them."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser

from tools.dashboards import FOLDER

Fields = dict[str, Any]

DASHBOARDS: dict[str, Fields] = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


class Query(NamedTuple):
    """One query of a panel, or an annotation."""

    dashboard: str
    panel: str
    letter: str
    expression: str

    @property
    def key(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.letter}"


class Selector(NamedTuple):
    """A metric that an expression reads. over: the function over its range; empty for the last value."""

    metric: str
    labels: frozenset[str]
    over: str
    window: float


def panels(dashboard: Fields) -> list[Fields]:
    """All panels but the headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["refId"], target["expr"])
        for annotation in dashboard["annotations"]["list"]:
            yield Query(name, f"annotation {annotation['name']}", "", annotation["expr"])


def selectors(expression: str) -> list[Selector]:
    """What an expression reads; it must be PromQL once its variables are filled."""
    text = re.sub(r"\$__(rate_interval|range|interval)|\$smoothing", "5m", expression)
    found: list[Selector] = []

    def visit(part: Any, over: str, window: float) -> None:
        match part:
            case promql_parser.VectorSelector():
                assert part.name is not None, expression
                found.append(Selector(part.name, frozenset(each.name for each in part.matchers.matchers), over, window))
            case promql_parser.MatrixSelector():
                visit(part.vector_selector, over, part.range.total_seconds())
            case promql_parser.Call():
                for argument in part.args:
                    visit(argument, part.func.name, 0)
            case promql_parser.BinaryExpr():
                visit(part.lhs, "", 0)
                visit(part.rhs, "", 0)
            case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
                visit(part.expr, "", 0)
            case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
                pass
            case _:
                raise AssertionError(f"{type(part).__name__} in {expression}")

    visit(promql_parser.parse(text), "", 0)
    return found
