"""The HTTP API of a Prometheus, as far as dashboards and alerts need it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

TIMEOUT_SECONDS = 60
Labels = dict[str, str]


class QueryError(Exception):
    """Prometheus refused a query; the text is its own."""


@dataclass(frozen=True)
class Series:
    """One series: (seconds since 1970, value) each; NaN and infinities stay."""

    labels: Labels
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Api:
    """url: such as http://127.0.0.1:9090."""

    url: str

    def instant(self, expression: str, at: float | None = None) -> list[Series]:
        """The value of each series at one time, now unless it is given."""
        parameters = {"query": expression} | ({} if at is None else {"time": str(at)})
        return self._series(self.get("query", parameters))

    def range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The series between two times, one value each `step` seconds."""
        parameters = {"query": expression, "start": str(start), "end": str(end), "step": str(step)}
        return self._series(self.get("query_range", parameters))

    def label_values(self, label: str, selectors: Sequence[str], start: float, end: float) -> list[str]:
        """The values of a label among the series that match."""
        parameters = [("start", str(start)), ("end", str(end)), *(("match[]", each) for each in selectors)]
        return [str(value) for value in self.get(f"label/{label}/values", parameters)]

    def rules(self) -> list[dict[str, Any]]:
        """All rules of all groups, alerts with what they found."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing."""
        return list(self.get("alerts")["alerts"])

    def get(self, path: str, parameters: Any = ()) -> Any:
        """`data` of an answer."""
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                body = error.read().decode(errors="replace")
            raise QueryError(body) from None

    @staticmethod
    def _series(data: Any) -> list[Series]:
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            return [Series({}, [(float(result[0]), float(result[1]))])]
        return [
            Series(
                dict(each["metric"]), [(float(at), float(value)) for at, value in each.get("values") or [each["value"]]]
            )
            for each in result
        ]
