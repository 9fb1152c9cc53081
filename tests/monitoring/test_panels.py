"""What becomes of variables, answers and values before they are drawn."""

import math
from collections.abc import Sequence

import pytest
from matplotlib.figure import Figure

from tests.monitoring.dashboards import DASHBOARDS
from tools.panels import charts, frames, units
from tools.panels.api import Api, Series
from tools.panels.draw import draw
from tools.panels.frames import Asked
from tools.panels.style import THEMES
from tools.panels.variables import Values, Window, filled

WINDOW = Window(1000.0, 1600.0)
VALUES = Values({"job": ["cats", "dogs.v2"], "namespace": ["team"], "smoothing": ["10m"]}, {"cluster": ".*"})


class Answers(Api):
    """A Prometheus that has one series for each job at each step, whatever it is asked."""

    asked: list[str]

    def instant(self, expression: str, at: float | None = None) -> list[Series]:
        return [Series(each.labels, each.points[-1:]) for each in self.range(expression, 1000.0, 1600.0, 60.0)]

    def range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        self.asked.append(expression)
        times = [start + step * number for number in range(int((end - start) / step) + 1)]
        labels = {"job_namespace": "team", "denoising_step": "00", "le": "0.5", "phase": "Running", "alarm": "a"}
        return [Series({**labels, "job_name": name}, [(at, at / 1000) for at in times]) for name in ("cats", "dogs")]


class Silence(Answers):
    """A Prometheus that knows nothing."""

    def range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        self.asked.append(expression)
        return []


def server(kind: type[Answers]) -> Answers:
    made = kind("")
    object.__setattr__(made, "asked", [])
    return made


def test_several_values_become_an_alternative_that_is_escaped() -> None:
    expression = VALUES.fill('m{cluster=~"$cluster",job_namespace=~"$namespace",job_name=~"${job}"}', WINDOW)
    assert expression == r'm{cluster=~".*",job_namespace=~"team",job_name=~"(cats|dogs\\.v2)"}'


def test_times_are_those_of_the_panel() -> None:
    assert WINDOW.steps({}) == (15.0, 60.0)
    assert WINDOW.steps({"interval": "30s"}) == (30.0, 120.0)
    assert Window(0, 40_000).steps({}) == (100.0, 115.0)
    assert Window(0, 100, scrape=1).steps({"interval": "30s"}) == (1.0, 4.0)
    text = VALUES.fill("rate(m[$__rate_interval]) + n[$__range] + o[$smoothing]", WINDOW, 15, 60)
    assert text == "rate(m[60000ms]) + n[600000ms] + o[10m]"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.5, "short", "1.23 K"),
        (2.5e12, "short", "2.5 Tri"),
        (0.8166, "percentunit", "81.7%"),
        (90.0, "s", "1.5 mins"),
        (0.012, "s", "12 ms"),
        (0.0, "s", "0 s"),
        (26.0, "h", "1.08 days"),
        (3 * 2**30, "bytes", "3 GiB"),
        (12.0, "none", "12"),
        (3e-4, "sci", "3.00e-04"),
        (1500.0, "reqps", "1.5 K req/s"),
        (math.nan, "s", "NaN"),
    ],
)
def test_values_are_written_in_their_units(value: float, unit: str, text: str) -> None:
    assert units.text(value, unit) == text


def test_the_ticks_of_an_axis_can_be_told_apart() -> None:
    axes = Figure().add_subplot()
    axes.set_ylim(0.69305, 0.69317)
    labels = [charts.tick_label(axes, tick, "none") for tick in axes.get_yticks() if 0.69305 <= tick <= 0.69317]
    assert len(labels) > 2
    assert len(set(labels)) == len(labels)


def test_every_unit_of_the_dashboards_can_be_written() -> None:
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
            if unit is not None:
                assert units.text(1.0, unit)


def test_answers_with_equal_labels_are_one_row_of_a_table() -> None:
    def asked(letter: str, value: float, **labels: str) -> Asked:
        return Asked("", letter, "", [Series({"job_name": "cats", **labels}, [(5.0, value)])])

    panel = {
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": ["job_name", "Value #A", "phase"]}}},
            {"id": "organize", "options": {"renameByName": {"job_name": "Job", "Value #A": "Done"}}},
        ]
    }
    answers = [asked("A", 0.5), asked("B", 1.0, phase="Running")]
    assert frames.table(panel, answers) == [{"Job": "cats", "Done": 0.5, "phase": "Running"}]


def test_a_line_stops_where_points_are_missing() -> None:
    times, values = charts.with_gaps([(0.0, 1.0), (10.0, 2.0), (50.0, 3.0)], 10.0)
    assert [math.isnan(value) for value in values] == [False, False, True, False]
    assert len(times) == 4


def test_a_panel_is_repeated_for_each_value_of_its_variable() -> None:
    repeated = [each for each in frames.panels(DASHBOARDS["training"], VALUES) if "repeat" in each[0]]
    assert [values.chosen["job"] for _, values in repeated] == [["cats"], ["dogs.v2"]]
    assert [(panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel, _ in repeated] == [(0, 12), (12, 12)]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_without_data_every_panel_says_so(name: str) -> None:
    api = server(Silence)
    values = filled(DASHBOARDS[name], api, WINDOW, {})
    texts = _texts(name, values, api)
    for panel in DASHBOARDS[name]["panels"]:
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"].get("noValue", "No data") in texts


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_is_asked_and_every_panel_drawn(name: str) -> None:
    api = server(Answers)
    values = filled(DASHBOARDS[name], api, WINDOW, {})
    api.asked.clear()
    texts = _texts(name, values, api)
    panels = [panel for panel, _ in frames.panels(DASHBOARDS[name], values)]
    assert len(api.asked) == sum(len(panel.get("targets", [])) for panel in panels)
    assert not any("$" in expression for expression in api.asked)
    assert not [text for text in texts if "$" in text]
    assert "No data" not in texts


def _texts(name: str, values: Values, api: Api) -> Sequence[str]:
    return [text.get_text() for text in draw(DASHBOARDS[name], values, api, WINDOW, THEMES["dark"]).texts]
