"""The dashboards: generated, complete, and in keeping with the rules of Grafana's linter for dashboards."""

import re
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.models import units

from tests.metrics_page import IDENTITY, OPERATOR, RUN
from tests.monitoring.dashboards import DASHBOARDS, Fields, Query, panels, queries, selectors
from tools.dashboards import files, training

UNITS = {value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RANGED = ("rate", "increase")
TOTALS = {"tailorpo_job_gpu_seconds_total"}
"""Counters that are shown as they are: the operator keeps them over the whole life of a job."""
TARGET = {"cluster", "namespace", "pod", "instance"}
"""Labels that Prometheus gives to a target."""


@pytest.fixture(params=DASHBOARDS)
def dashboard(request: pytest.FixtureRequest) -> Fields:
    return DASHBOARDS[request.param]


@pytest.fixture(params=list(queries()), ids=lambda query: query.key)
def query(request: pytest.FixtureRequest) -> Query:
    found: Query = request.param
    return found


def test_the_files_are_those_that_the_script_writes() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name}: run `make generate`"
    assert {path.stem for path in files()} == DASHBOARDS.keys()


def test_each_can_be_loaded_from_a_file_and_found_again(dashboard: Fields) -> None:
    assert dashboard["schemaVersion"] == 42
    assert re.fullmatch(r"tailorpo-[a-z]+", dashboard["uid"])
    assert dashboard["tags"] == ["tailorpo"]
    assert "id" not in dashboard
    (link,) = dashboard["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        ["tailorpo"],
        True,
        True,
    )
    assert dashboard["graphTooltip"] == 1
    assert dashboard["description"]


def test_each_has_a_uid_of_its_own() -> None:
    assert {dashboard["uid"] for dashboard in DASHBOARDS.values()} == {f"tailorpo-{name}" for name in DASHBOARDS}


def test_the_data_source_is_a_variable_everywhere(dashboard: Fields) -> None:
    variables = dashboard["templating"]["list"]
    assert (variables[0]["name"], variables[0]["type"]) == ("datasource", "datasource")
    asking = [each for each in variables if each["type"] == "query"]
    targets = [target for panel in panels(dashboard) for target in panel["targets"]]
    for part in (*asking, *panels(dashboard), *targets, *dashboard["annotations"]["list"]):
        assert part["datasource"] == SOURCE


def test_every_panel_says_what_it_shows(dashboard: Fields) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(titles) == len(set(titles))
    for panel in panels(dashboard):
        assert len(panel["description"]) > 10
        assert panel["description"].endswith(".")
        assert panel["targets"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))


def test_every_unit_is_known(dashboard: Fields) -> None:
    for panel in panels(dashboard):
        options, config = panel["options"], panel["fieldConfig"]
        used = {options["cellValues"]["unit"]} if panel["type"] == "heatmap" else {config["defaults"]["unit"]}
        used |= {each["value"] for part in config["overrides"] for each in part["properties"] if each["id"] == "unit"}
        assert used <= UNITS, panel["title"]


def test_panels_fill_the_grid_without_overlaps(dashboard: Fields) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert sum(place["w"] * place["h"] for place in places) == 24 * max(place["y"] + place["h"] for place in places)
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))


def test_variables_offer_what_lived_in_the_time_range(dashboard: Fields) -> None:
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        expression = variable["query"]["query"]
        assert variable["definition"] == expression
        assert re.match(
            r"query_result\(group by \(\w+\) \(last_over_time\(tailorpo_\w+\{.*\}\[\$__range\]\)\)\)", expression
        )
        assert variable["refresh"] == 2  # also when the time range changes
        assert variable["label"]
        assert variable["description"].endswith(".")
        if variable["includeAll"]:
            assert variable["allValue"] == ".*"  # also matches where there is no such label


def test_no_panel_sums_all_jobs(query: Query) -> None:
    if query.dashboard == "training":
        for selector in selectors(query.expression):
            assert selector.labels >= {"cluster", *IDENTITY}


def test_every_query_reads_metrics_and_labels_that_are_documented(query: Query) -> None:
    rows = RUN | OPERATOR
    found = selectors(query.expression)
    assert found
    for selector in found:
        if selector.metric.startswith("process_"):
            continue
        name = selector.metric
        name = name if name in rows else re.sub(r"_(sum|count|bucket)$", "", name)
        assert name in rows, selector.metric
        assert selector.labels <= rows[name].labels | IDENTITY | TARGET, selector
        assert "cluster" in selector.labels


def test_counters_are_shown_as_rates_over_an_interval_that_fits(query: Query) -> None:
    for selector in selectors(query.expression):
        counter = re.search(r"_(total|sum|count|bucket)$", selector.metric)
        if counter and selector.metric not in TOTALS:
            assert selector.over in RANGED, selector
        if selector.over in RANGED:
            assert counter, selector
    assert "[$__interval]" not in query.expression  # may be shorter than the time between two scrapes


def test_rates_have_a_smallest_step(dashboard: Fields) -> None:
    for panel in panels(dashboard):
        rate = any("$__rate_interval" in target["expr"] for target in panel["targets"])
        assert ("interval" in panel) == rate, panel["title"]


def test_lines_stop_where_there_is_no_data(dashboard: Fields) -> None:
    for panel in panels(dashboard):
        if panel["type"] == "timeseries":
            custom: dict[str, Any] = panel["fieldConfig"]["defaults"]["custom"]
            assert custom["spanNulls"] is False
            assert panel["options"]["legend"]["showLegend"]


def test_zero_is_a_cell_of_the_heat_map(dashboard: Fields) -> None:
    for panel in panels(dashboard):
        if panel["type"] == "heatmap":
            assert panel["options"]["calculate"] is False
            assert panel["options"]["filterValues"]["le"] < 0


def test_the_table_of_jobs_leads_to_their_training() -> None:
    (table,) = (panel for panel in panels(DASHBOARDS["jobs"]) if panel["type"] == "table")
    (link,) = (
        each["url"]
        for part in table["fieldConfig"]["overrides"]
        for each_property in part["properties"]
        if each_property["id"] == "links"
        for each in each_property["value"]
    )
    assert link.startswith(f"/d/{training.UID}?")
    names = {variable["name"] for variable in DASHBOARDS["training"]["templating"]["list"]}
    assert set(re.findall(r"var-(\w+)=", link)) <= names
    assert "${__url_time_range}" in link
