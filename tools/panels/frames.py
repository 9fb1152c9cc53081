"""What a panel asks of Prometheus, and what becomes of the answers before they are drawn."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tools.panels.api import Api, Series
from tools.panels.variables import Fields, Values, Window

MISSING = float("nan")


@dataclass(frozen=True)
class Line:
    """One series under its display name. letter: of its query."""

    letter: str
    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The last value that is a number; NaN without one."""
        return next((value for _, value in reversed(self.points) if not math.isnan(value)), MISSING)


@dataclass(frozen=True)
class Asked:
    """One query of a panel as it was sent, with its answer."""

    panel: str
    letter: str
    expression: str
    series: list[Series]


def panels(dashboard: Fields, values: Values) -> Iterator[tuple[Fields, Values]]:
    """All panels and headings in their places; one that is repeated appears once for each value of its variable."""
    for panel in dashboard["panels"]:
        name = panel.get("repeat")
        if not name:
            yield panel, values
            continue
        place, count = panel["gridPos"], len(values.chosen[name])
        columns = min(count, int(panel.get("maxPerRow", 4)))
        width = place["w"] // columns
        for index, value in enumerate(values.chosen[name][:columns]):
            at = {**place, "w": width, "x": place["x"] + index * width}
            yield {**panel, "gridPos": at}, values.with_one(name, value)


def ask(api: Api, panel: Fields, values: Values, window: Window) -> list[Asked]:
    """Asks every query of a panel."""
    step, rate = window.steps(panel)
    answers = []
    for target in panel.get("targets", []):
        expression = values.fill(target["expr"], window, step, rate)
        if target.get("instant"):
            series = api.instant(expression, window.end)
        else:
            series = api.range(expression, window.start, window.end, step)
        answers.append(Asked(panel["title"], target["refId"], expression, series))
    return answers


def lines(panel: Fields, answers: Iterable[Asked]) -> list[Line]:
    """The series of a panel under the names of its legend, in the order of its queries and names."""
    legends = {target["refId"]: target.get("legendFormat", "") for target in panel["targets"]}
    made = [
        Line(asked.letter, _named(legends[asked.letter], series), series.labels, series.points)
        for asked in answers
        for series in asked.series
    ]
    return sorted(made, key=lambda line: (line.letter, line.name))


def table(panel: Fields, answers: Iterable[Asked]) -> list[dict[str, Any]]:
    """The rows of a table: answers with the same labels and time are one row, and columns are renamed."""
    merged: list[dict[str, Any]] = []
    for asked in answers:
        for series in asked.series:
            labels = {name: value for name, value in series.labels.items() if name != "__name__"}
            for at, value in series.points:
                _merge(merged, {**labels, "Time": at, f"Value #{asked.letter}": value})
    steps = {each["id"]: each["options"] for each in panel.get("transformations", [])}
    if names := steps.get("filterFieldsByName", {}).get("include", {}).get("names"):
        merged = [{name: row[name] for name in names if name in row} for row in merged]
    renamed = steps.get("organize", {}).get("renameByName", {})
    return [{renamed.get(name, name): value for name, value in row.items()} for row in merged]


def _merge(rows: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Adds a row, or its columns to a row whose common columns have the same values."""
    for row in rows:
        common = row.keys() & new.keys()
        if common - {"Time"} and all(row[name] == new[name] for name in common):
            row.update(new)
            return
    rows.append(new)


def _named(legend: str, series: Series) -> str:
    if legend:
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: series.labels.get(found[1], ""), legend).strip()
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(series.labels.items())) + "}"
