"""Dashboards, rules and alerts on a real Prometheus that scrapes a real training and a real operator.

The tests stand in the order of the story: the training is watched first, and spoiled afterwards.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tailorpo_trainer.errors import ExitCode
from tests.cluster.waiting import until
from tests.monitoring.dashboards import DASHBOARDS, Fields, panels, queries
from tests.monitoring.rules import alerts, rules
from tests.monitoring.scene import NAMESPACE, PASSING, PATIENCE, UNSURE, Scene
from tools.panels import frames
from tools.panels.draw import draw, save
from tools.panels.style import THEMES
from tools.panels.variables import Values, Window, filled

pytestmark = pytest.mark.timeout(1200)

NO_ACCELERATOR = "this machine has no accelerator"
EMPTY = {
    "training: Utilisation: A": NO_ACCELERATOR,
    "training: Utilisation: B": NO_ACCELERATOR,
    "training: Accelerator memory: A": NO_ACCELERATOR,
    "training: Accelerator memory: B": NO_ACCELERATOR,
    "operator: Requests that failed: A": "the API server refuses no request",
    "operator: Share that failed: A": "the API server refuses no request",
    "training: annotation Alarms: ": "the training is healthy",
}
"""Queries that find nothing here by nature, with the reason."""
CHOSEN: dict[str, Mapping[str, Sequence[str]]] = {
    "with honor_labels": {"namespace": [NAMESPACE], "job": ["cats"]},
    "without": {"cluster": ["strict"], "namespace": [NAMESPACE], "job": ["cats"]},
}
USUAL = (("TailorPOJobFailed", "broken"), ("TailorPOJobPending", "waiting"))


def window(seconds: float = 20) -> Window:
    now = time.time()
    return Window(now - seconds, now, scrape=0.5)


def variables(scene: Scene, name: str, wanted: Mapping[str, Sequence[str]], seen: Window) -> Values:
    """The variables of a dashboard; of the operator, whose namespace is another one."""
    dashboard = DASHBOARDS[name]
    known = {each["name"] for each in dashboard["templating"]["list"]}
    chosen = {key: value for key, value in wanted.items() if key in known and (name != "operator" or key == "cluster")}
    return filled(dashboard, scene.api, seen, chosen)


def answered(scene: Scene, name: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, bool]:
    """For each query of a dashboard, whether it found a number."""
    dashboard, seen = DASHBOARDS[name], window()
    values = variables(scene, name, wanted, seen)
    found = {}
    marks = [
        {"title": f"annotation {each['name']}", "targets": [{"refId": "", "expr": each["expr"]}]}
        for each in dashboard["annotations"]["list"]
    ]
    shown: list[tuple[Fields, Values]] = [*frames.panels(dashboard, values), *((each, values) for each in marks)]
    for panel, own in shown:
        for asked in frames.ask(scene.api, panel, own, seen):
            numbers = [value for series in asked.series for _, value in series.points]
            found[f"{name}: {panel['title']}: {asked.letter}"] = any(not math.isnan(value) for value in numbers)
    return found


@pytest.mark.parametrize("how", CHOSEN)
@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_of_every_panel_finds_data(scene: Scene, name: str, how: str) -> None:
    def look() -> dict[str, bool]:
        found = answered(scene, name, CHOSEN[how])
        assert [key for key, data in found.items() if not data and key not in EMPTY] == []
        return found

    found = until(look, "every query finds data", PATIENCE)
    assert found.keys() == {query.key for query in queries() if query.dashboard == name}
    assert [key for key, data in found.items() if data and key in EMPTY] == []


def test_variables_offer_the_jobs_and_clusters_that_there_are(scene: Scene) -> None:
    seen = window()
    values = variables(scene, "training", {}, seen)
    assert values.chosen["job"] == ["cats"]  # the only one that trains
    assert values.regex("cluster") == ".*"
    with pytest.raises(LookupError, match=r"there is no \['dogs'\]"):
        variables(scene, "training", {"job": ["dogs"]}, seen)
    assert variables(scene, "jobs", {"namespace": [NAMESPACE]}, seen).regex("namespace") == NAMESPACE


def test_recording_rules_have_values(scene: Scene) -> None:
    def look() -> bool:
        for rule in rules():
            if "record" in rule:
                found = scene.api.instant(rule["record"])
                assert {series.labels.get("cluster", "") for series in found} == {"", "strict"}, rule["record"]
                assert not all(math.isnan(series.points[0][1]) for series in found), rule["record"]
        return True

    until(look, "all series are recorded", PATIENCE)


def test_every_rule_can_be_evaluated(scene: Scene) -> None:
    def look() -> list[str]:
        found = scene.api.rules()
        assert all(rule["health"] == "ok" for rule in found), [rule.get("lastError") for rule in found]
        return [rule["name"] for rule in found if rule["type"] == "alerting"]

    assert set(until(look, "all rules are evaluated")) == alerts().keys() - UNSURE


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_dashboards_can_be_drawn(scene: Scene, name: str, tmp_path: Path) -> None:
    seen = window()
    values = variables(scene, name, CHOSEN["without"], seen)
    for theme in THEMES.values():
        figure = draw(DASHBOARDS[name], values, scene.api, seen, theme)
        texts = " ".join(text.get_text() for text in figure.texts)
        assert all(panel["title"].replace("$job", "cats") in texts for panel in panels(DASHBOARDS[name]))
        save(figure, tmp_path / f"{theme.name}.png")
        with Image.open(tmp_path / f"{theme.name}.png") as picture:
            assert picture.width > 1000


@pytest.mark.soak  # it waits for the ranges of the rules, and shortened ones do not hold on a busy machine
def test_alerts_fire_for_what_happens_and_for_nothing_else(scene: Scene) -> None:
    training = scene.training
    scene.until_firing(*USUAL)
    assert scene.has_fired(PASSING, "unlucky")

    training.script(lift=5.0)  # the reward rises, and the one that is only measured falls
    raised: tuple[tuple[str, str], ...] = (("TailorPOOverOptimisation", "cats"),)
    scene.until_firing(*USUAL, *raised)

    training.script(lift=5.0, same=True)
    raised = (*raised, ("TailorPOGapCollapsed", "cats"))
    scene.until_firing(*USUAL, *raised)

    training.script(lift=5.0, hang=True)
    scene.until_firing(*USUAL, *raised, ("TailorPOStalled", "cats"))
    training.script(lift=5.0)
    scene.until_firing(*USUAL, *raised)

    with training.without_storage():
        scene.until_firing(*USUAL, *raised, ("TailorPOCheckpointFailing", "cats"))
    scene.until_firing(*USUAL, *raised)

    training.script(nan=True)
    assert training.end() == ExitCode.NOT_FINITE
    for pod in scene.cats.pods(1):
        scene.cats.driver.end(pod, ExitCode.NOT_FINITE, training.last_words)
    assert scene.cats.phase("Failed")["attempts"][-1]["reason"] == "NotFinite"
    scene.until_firing(*USUAL, ("TailorPOJobFailed", "cats"), ("TailorPONotFinite", "cats"))

    assert variables(scene, "training", {}, window(2)).chosen["job"] == [""]  # no dead job is offered

    scene.operator.kill()
    scene.until_firing(("TailorPOOperatorDown", ""))
