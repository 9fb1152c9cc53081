"""The variables of a dashboard: what they can be, and what an expression becomes with them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.panels.api import Api

Fields = dict[str, Any]
POINTS = 400
"""Values that a panel of full width asks for; Grafana asks for one a pixel."""
SOURCE_SCRAPE = 15.0
"""Seconds between scrapes that Grafana assumes of a data source that says nothing."""
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True)
class Window:
    """What is shown: seconds since 1970. scrape: between two scrapes, instead of what panel and data source say."""

    start: float
    end: float
    scrape: float | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def steps(self, panel: Fields) -> tuple[float, float]:
        """`$__interval` and `$__rate_interval` of a panel, in seconds."""
        scrape = self.scrape or (seconds(panel["interval"]) if "interval" in panel else SOURCE_SCRAPE)
        step = max(self.seconds / POINTS, scrape)
        return step, max(step + scrape, 4 * scrape)


@dataclass(frozen=True)
class Values:
    """What was chosen for each variable; a variable that is not in `chosen` is "All"."""

    chosen: Mapping[str, Sequence[str]]
    all_values: Mapping[str, str]

    def with_one(self, name: str, value: str) -> "Values":
        return Values({**self.chosen, name: [value]}, self.all_values)

    def text(self, name: str) -> str:
        """For a title."""
        return " + ".join(self.chosen.get(name, ["All"]))

    def regex(self, name: str) -> str:
        """For a matcher, as Grafana writes several values."""
        if name not in self.chosen:
            return self.all_values[name]
        parts = [re.escape(each).replace("\\-", "-").replace("\\", "\\\\") for each in self.chosen[name]]
        return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"

    def fill(self, text: str, window: Window, step: float = 15.0, rate: float = 60.0) -> str:
        """An expression without variables."""
        times = {"__rate_interval": rate, "__interval": step, "__range": window.seconds}
        for name, length in times.items():
            text = text.replace(f"${name}", f"{max(1, round(1000 * length))}ms")
        return re.sub(r"\$\{?(\w+)(:\w+)?\}?", lambda found: self.regex(found[1]), text)


def filled(dashboard: Fields, api: Api, window: Window, wanted: Mapping[str, Sequence[str]]) -> Values:
    """Asks Prometheus for the values of each variable, one after the other, and chooses as Grafana does at first.

    Raises `LookupError` if a wanted value does not exist.
    """
    values = Values({}, {})
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        chosen, alls = dict(values.chosen), dict(values.all_values)
        match variable["type"]:
            case "datasource":
                chosen[name] = ["prometheus"]
            case "interval":
                chosen[name] = list(wanted.get(name, [variable["current"]["value"]]))
            case "query":
                offered = _offered(variable, api, values, window)
                if "allValue" in variable:
                    alls[name] = variable["allValue"]
                if name in wanted:
                    if missing := set(wanted[name]).difference(offered):
                        raise LookupError(f"{name}: there is no {sorted(missing)}; there are {offered}")
                    chosen[name] = list(wanted[name])
                elif not variable.get("includeAll"):
                    chosen[name] = offered[:1] or [""]
        values = Values(chosen, alls)
    return values


def _offered(variable: Fields, api: Api, values: Values, window: Window) -> list[str]:
    """The values that the list of a variable shows."""
    query = re.fullmatch(r"query_result\((.*)\)", variable["query"]["query"], re.DOTALL)
    assert query is not None, variable
    pattern = variable["regex"].strip("/")
    lines = [
        "{" + ",".join(f'{name}="{value}"' for name, value in series.labels.items()) + "}"
        for series in api.instant(values.fill(query[1], window), window.end)
    ]
    return sorted({found[1] for line in lines if (found := re.search(pattern, line))})


def seconds(text: str) -> float:
    """A span such as 30s or 5m."""
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]
