"""The alerts: how they are written, when they fire, and that each has its section in the runbook."""

import json
import re
from collections import Counter
from pathlib import Path

import promql_parser
import pytest

from tests.cluster.prometheus import promtool
from tests.monitoring.cases import CASES, Case
from tests.monitoring.rules import FILES, Fields, alerts, rules
from tools import rule_tables

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks.md"
SEVERITIES = {"critical", "warning", "info"}


def test_promtool_finds_nothing_to_complain_about(programs: Path) -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, FILES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_case(programs: Path, tmp_path: Path) -> None:
    """One run of promtool for all; its output names the cases that fail."""
    document = {
        "rule_files": [str(path) for path in FILES],
        "evaluation_interval": "1m",
        "tests": [_test(case, alerts()[case.alert]) for case in CASES],
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(document))
    tested = promtool("test", "rules", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def _test(case: Case, rule: Fields) -> Fields:
    expected = [
        {
            "exp_labels": {**rule["labels"], **labels},
            "exp_annotations": {**rule["annotations"], "description": description},
        }
        for labels, description in case.fires
    ]
    return {
        "name": f"{case.alert}: {case.what}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}],
    }


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    seen = Counter((case.alert, bool(case.fires)) for case in CASES)
    assert seen.keys() == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.parametrize("name", alerts())
def test_alerts_follow_the_conventions(name: str) -> None:
    alert = alerts()[name]
    assert re.fullmatch(r"TailorPO([A-Z][a-z]+)+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in SEVERITIES
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert "{{" not in annotations["summary"]
    assert "{{" in annotations["description"]
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"].endswith(f"#{name.lower()}")
    assert re.search(r"(==|!=|<=?|>=?) [0-9.]+$", alert["expr"]), "the chart replaces the threshold at the end"
    promql_parser.parse(alert["expr"])


def test_every_alert_has_its_section_of_the_runbook() -> None:
    parts = re.split(r"^## (TailorPO\w+)\n", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() == alerts().keys()
    assert len(parts) == 2 * len(sections)
    for name, text in sections.items():
        found = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert found == ["Meaning", "Impact", "Diagnosis", "Mitigation"], name


def test_the_page_lists_what_the_files_hold() -> None:
    assert rule_tables.PAGE.read_text() == rule_tables.page(), "run `make generate`"


def test_recorded_series_are_named_by_level_metric_and_operation() -> None:
    for rule in rules():
        if "record" in rule:
            level, metric, operation = rule["record"].split(":")
            labels = re.findall(r"by \(([^)]*)\)", rule["expr"])[0].split(", ")
            assert level == "_".join(label for label in labels if label != "le")
            assert metric.startswith("tailorpo_")
            assert re.fullmatch(r"sum|max|(p99_)?rate5m", operation)
