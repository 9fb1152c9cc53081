"""The metrics of a real run, and that `docs/metrics.md` describes them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import promql_parser
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from ruamel.yaml import YAML

from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.telemetry.observer import RunStart
from tailorpo_trainer.telemetry.prometheus import Metrics

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()

ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if "| `tailorpo_" in line]
ALERTS = {
    rule["alert"]: rule["expr"]
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for group in YAML(typ="safe").load(block)["groups"]
    for rule in group["rules"]
}
QUERIES = re.findall(r"```promql\n(.*?)```", PAGE, re.DOTALL)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
IDENTITY = {"namespace": "research", "job": "test"}

Install = Callable[[Callable[[int], Any]], None]
Families = dict[str, Metric]


def scrape(url: str, accept: str = OPENMETRICS) -> Families:
    """By name as written on the page: with `_total` for a counter."""
    with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as answer:
        kind, text = answer.headers["Content-Type"], answer.read().decode()
    parse = openmetrics if "openmetrics" in kind else classic
    return {f"{found.name}_total" if found.type == "counter" else found.name: found for found in parse(text)}


def value(families: Families, sample: str, **labels: str) -> float:
    """The value of one sample, such as `tailorpo_phase_seconds_count`."""
    (found,) = (
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )
    return found


@pytest.fixture
def watched(start: Any, probe: Install, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Families]]:
    """A run that is scraped while it draws each of its calls' pictures."""

    def run(*options: str, fail_at: int | None = None, accept: str = OPENMETRICS, **parts: Any) -> list[Families]:
        scrapes: list[Families] = []
        urls: list[str] = []

        def on_call(call: int) -> None:
            if not urls:
                urls.append(capsys.readouterr().err.split()[-1])
            scrapes.append(scrape(urls[0], accept))
            if call == fail_at:
                raise KeyError("weights")

        probe(on_call)
        status = start("--metrics-port", "0", *options, **parts)
        assert status == (70 if fail_at else 0)
        return scrapes

    return run


WHOLE: dict[str, Any] = {
    "evaluation": {"everyIterations": 1, "images": 4, "rewards": [{"name": "clip-score"}]},
    "method": {"name": "d3po", "clampRatio": 0.1},
    "training": {"iterations": 3, "promptsPerIteration": 3},
}


@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain"])
def test_the_page_lists_what_a_run_serves(watched: Callable[..., list[Families]], accept: str) -> None:
    """With its type and labels; while it trains, and under both formats."""
    served = {name: family for name, family in watched(accept=accept, **WHOLE)[-1].items() if "_created" not in name}
    listed = {row[0].strip("`"): (row[1], set(re.findall(r"\w+", row[2]))) for row in ROWS}
    ours = {name: family for name, family in served.items() if not name.startswith("process_")}
    assert listed.keys() == ours.keys()
    for name, family in ours.items():
        kind, labels = listed[name]
        assert family.type == kind
        assert family.samples, name
        for sample in family.samples:
            assert sample.labels.items() >= IDENTITY.items()
            assert sample.labels.keys() - {"le"} == labels | IDENTITY.keys()
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == served.keys() - ours.keys()


def selected(expression: str) -> set[str]:
    """Metrics that an expression reads; it must be PromQL, and its labels those of the page."""
    labels = {row[0].strip("`"): set(re.findall(r"\w+", row[2])) | IDENTITY.keys() for row in ROWS}
    names: set[str] = set()

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            assert part.name is not None
            name = part.name if part.name in labels else re.sub(r"_(sum|count|bucket)$", "", part.name)
            assert {matcher.name for matcher in part.matchers.matchers} <= labels[name]
            names.add(name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return names


def test_every_query_can_be_asked() -> None:
    assert all(selected(query) for query in QUERIES)
    assert len(QUERIES) == 3


def test_every_alert_can_be_asked_and_reads_the_metrics_that_name_it() -> None:
    named = {row[5] for row in ROWS} - {""}
    assert named == ALERTS.keys()
    for alert, expression in ALERTS.items():
        read = {row[0].strip("`") for row in ROWS if row[5] == alert}
        # The run itself raises alarms from several figures; this alert passes them on.
        assert read & selected(expression) == (selected(expression) if alert == "TailorPOAlarm" else read)
    assert {name for name in alarms.NAMES if f"`{name}`" in PAGE} == set(alarms.NAMES)


def test_figures_are_those_of_the_lines_as_training_goes_on(
    watched: Callable[..., list[Families]], tmp_path: Path
) -> None:
    scrapes = watched()  # two calls an iteration
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if line["kind"] == "iteration"]
    assert [value(each, "tailorpo_step") for each in scrapes] == [0, 0, 1, 1, 2, 2]
    assert not scrapes[0]["tailorpo_loss"].samples  # unknown, not 0
    assert [value(each, "tailorpo_samples_total") for each in scrapes[::2]] == [0, 3, 6]
    last, line = scrapes[-1], iterations[1]
    for metric, key in (("loss", "loss"), ("reward_gap", "gap"), ("gradient_norm", "gradient_norm")):
        assert value(last, f"tailorpo_{metric}") == line[key]
    for step, gap in line["gap_by_step"].items():
        assert value(last, "tailorpo_step_reward_gap_count", denoising_step=step) == 2
        total = gap + iterations[0]["gap_by_step"][step]
        assert value(last, "tailorpo_step_reward_gap_sum", denoising_step=step) == pytest.approx(total)
    seconds = sum(each["phase_seconds"]["rollout"] for each in iterations[:2])
    assert value(last, "tailorpo_phase_seconds_sum", phase="rollout") == pytest.approx(seconds)
    saved = [line for line in lines if line["kind"] == "checkpoint"][:2]
    assert value(last, "tailorpo_checkpoint_bytes_total") == sum(line["bytes"] for line in saved)
    assert value(last, "tailorpo_checkpoint_seconds_count") == 2
    assert value(last, "tailorpo_checkpoint_step") == 2
    assert value(last, "tailorpo_checkpoint_failures_total") == 0


def test_after_a_resume_counters_begin_at_0_and_gauges_where_the_run_is(
    watched: Callable[..., list[Families]],
) -> None:
    first = watched(fail_at=6)  # in iteration 3, after the checkpoint of 2
    assert value(first[-1], "tailorpo_samples_total") == 6
    resumed = watched()
    assert value(resumed[0], "tailorpo_attempt") == 2
    assert value(resumed[0], "tailorpo_step") == value(resumed[0], "tailorpo_checkpoint_step") == 2
    assert value(resumed[0], "tailorpo_loss") == value(first[-1], "tailorpo_loss")
    for counter in ("samples", "reward_queries", "checkpoint_bytes", "checkpoint_failures"):
        assert value(resumed[0], f"tailorpo_{counter}_total") == 0


def test_no_prometheus_unless_a_port_is_asked_for(
    start: Any, probe: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("prometheus_client", "tailorpo_trainer.telemetry.prometheus", "tailorpo_trainer.telemetry.server"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails from now on
    probe(lambda call: None)
    assert start() == 0
    assert "metrics:" not in capsys.readouterr().err


def test_alarms_and_failed_checkpoints_count_also_those_before_a_resume() -> None:
    metrics = Metrics(Progress(name="test", of=9))
    alarm = {"kind": "alarm", "iteration": 1, "name": "gap-at-zero", "message": "m"}
    metrics.begin(RunStart(2, 1, {}, [alarm]))
    get = metrics.registry.get_sample_value
    labels = {"namespace": "", "job": "test"}
    assert {name: get("tailorpo_alarm", labels | {"alarm": name}) for name in alarms.NAMES} == {
        name: float(name == "gap-at-zero") for name in alarms.NAMES
    }
    metrics.observe({"kind": "checkpoint", "iteration": 2, "error": "gone"})
    assert get("tailorpo_checkpoint_failures_total", labels) == 1
    assert get("tailorpo_checkpoint_last_success_timestamp_seconds", labels) is None


def test_two_runs_in_one_process_do_not_meet() -> None:
    one, other = Metrics(Progress()), Metrics(Progress())
    assert one.registry is not other.registry
