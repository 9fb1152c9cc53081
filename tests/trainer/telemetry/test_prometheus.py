"""The metrics of a real run, and that `docs/metrics.md` describes them."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.stats import flops
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.telemetry.observer import RunStart
from tailorpo_trainer.telemetry.prometheus import Metrics
from tests.metrics_page import ACCELERATOR, PAGE, QUERIES, RUN, selected, written
from tests.monitoring.rules import alerts

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
IDENTITY = {"job_namespace": "research", "job_name": "test"}

Install = Callable[[Callable[[int], Any]], None]
Families = dict[str, Metric]


def scrape(url: str, accept: str = OPENMETRICS) -> Families:
    """By name as written on the page: with `_total` for a counter."""
    with urlopen(Request(url, headers={"Accept": accept}), timeout=10) as answer:
        kind, text = answer.headers["Content-Type"], answer.read().decode()
    parse = openmetrics if "openmetrics" in kind else classic
    return {written(found): found for found in parse(text)}


def scrape_settled(url: str, accept: str, behind: int) -> Families:
    """A scrape that has the checkpoint of `behind` iterations ago, which is committed in the background."""
    deadline = time.monotonic() + 60
    while True:
        families = scrape(url, accept)
        steps = [families[name].samples for name in ("tailorpo_step", "tailorpo_checkpoint_step")]
        done, saved = (samples[0].value if samples else 0 for samples in steps)
        if saved >= done - behind:
            return families
        assert time.monotonic() < deadline, f"no checkpoint of iteration {done}"


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

        def on_call(call: int) -> None:  # in an evaluation before the checkpoint of its iteration
            if not urls:
                urls.append(capsys.readouterr().err.split()[-1])
            scrapes.append(scrape_settled(urls[0], accept, behind=int("evaluation" in parts)))
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
    ours = {name: family for name, family in served.items() if not name.startswith("process_")}
    # Tests run on CPUs; `test_accelerator.py` has the others.
    assert ours.keys() == RUN.keys() - ACCELERATOR
    for name, family in ours.items():
        assert family.type == RUN[name].kind
        assert family.samples, name
        for sample in family.samples:
            assert sample.labels.items() >= IDENTITY.items()
            assert sample.labels.keys() - {"le"} == RUN[name].labels | IDENTITY.keys()
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == served.keys() - ours.keys()


def test_every_query_can_be_asked() -> None:
    assert all(selected(query) for query in QUERIES)
    assert len(QUERIES) == 8


def test_the_page_names_the_alerts_that_read_a_metric() -> None:
    found = {name: selected(alert["expr"]) for name, alert in alerts().items()}
    for row in RUN.values():
        assert row.alerts == ", ".join(sorted(alert for alert, names in found.items() if row.name in names)), row.name
    assert {name for name in alarms.NAMES if f"`{name}`" in PAGE} == set(alarms.NAMES)


def test_figures_are_those_of_the_lines_as_training_goes_on(
    watched: Callable[..., list[Families]], tmp_path: Path
) -> None:
    began = time.time()
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
        padded = f"{int(step):02}"
        assert value(last, "tailorpo_step_reward_gap_count", denoising_step=padded) == 2
        total = gap + iterations[0]["gap_by_step"][step]
        assert value(last, "tailorpo_step_reward_gap_sum", denoising_step=padded) == pytest.approx(total)
        assert value(last, "tailorpo_step_reward_gap_last", denoising_step=padded) == gap
    assert len(last["tailorpo_step_reward_gap_last"].samples) == len(line["gap_by_step"])
    assert value(last, "tailorpo_training_score", reward="probe") == line["rewards"]["probe"]
    assert value(last, "tailorpo_denoiser_forwards_total") == line["totals"]["denoiser_forwards"] > 0
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert flops(line["totals"], cost) > 0
    assert value(last, "tailorpo_flops_total") == pytest.approx(flops(line["totals"], cost))
    assert began < value(last, "tailorpo_attempt_start_timestamp_seconds") < time.time()
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
    for counter in (
        "samples", "reward_queries", "denoiser_forwards", "flops", "checkpoint_bytes", "checkpoint_failures"
    ):  # fmt: skip
        assert value(resumed[0], f"tailorpo_{counter}_total") == 0


def test_metrics_change_nothing_of_what_is_trained(start: Any, probe: Install, tmp_path: Path) -> None:
    """The cost of a row is computed in this process, from networks of its own."""

    def trained(*options: str) -> list[tuple[float, float]]:
        probe(lambda call: None)
        assert start("--fresh", *options) == 0
        lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return [(line["loss"], line["gradient_norm"]) for line in lines if line["kind"] == "iteration"]

    assert trained("--metrics-port", "0") == trained()


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
    labels = {"job_namespace": "", "job_name": "test"}
    assert {name: get("tailorpo_alarm", labels | {"alarm": name}) for name in alarms.NAMES} == {
        name: float(name == "gap-at-zero") for name in alarms.NAMES
    }
    metrics.observe({"kind": "checkpoint", "iteration": 2, "error": "gone"})
    assert get("tailorpo_checkpoint_failures_total", labels) == 1
    assert get("tailorpo_checkpoint_last_success_timestamp_seconds", labels) is None


def iteration(number: int, gaps: dict[str, float | None]) -> dict[str, Any]:
    totals = {"images": 2, "reward_queries": 4, "denoiser_forwards": 10, "denoiser_forwards_with_gradient": 3}
    return {
        "kind": "iteration", "iteration": number, "rewards": {"a": 0.5}, "gap_by_step": gaps, "phase_seconds": {},
        "totals": {key: number * total for key, total in totals.items()},
    }  # fmt: skip


def test_the_last_gap_is_that_of_the_steps_that_were_trained() -> None:
    metrics = Metrics(Progress(name="test", of=9), steps=101)
    metrics.begin(RunStart(1, 0, {}, []))

    def shown() -> dict[str, float]:
        (family,) = (each for each in metrics.registry.collect() if each.name == "tailorpo_step_reward_gap_last")
        return {sample.labels["denoising_step"]: sample.value for sample in family.samples}

    metrics.observe(iteration(1, {"0": 1.0, "100": 2.0}))
    assert shown() == {"000": 1.0, "100": 2.0}
    metrics.observe(iteration(2, {"0": 3.0, "99": 4.0, "100": None}))
    assert shown() == {"000": 3.0, "099": 4.0}


def test_flops_are_the_work_of_this_process_times_the_cost_of_a_row() -> None:
    metrics = Metrics(Progress(name="test", of=9), costs=lambda: {"denoiser_forward": 100.0, "denoiser_backward": 7.0})
    metrics.begin(RunStart(2, 1, iteration(1, {})["totals"], [iteration(1, {})]))
    get, labels = metrics.registry.get_sample_value, {"job_namespace": "", "job_name": "test"}
    assert get("tailorpo_flops_total", labels) == 0
    metrics.observe(iteration(3, {}))
    assert get("tailorpo_denoiser_forwards_total", labels) == 20
    assert get("tailorpo_flops_total", labels) == 20 * 100 + 6 * 7


def test_a_model_that_cannot_be_estimated_has_no_flops() -> None:
    def costs() -> dict[str, float]:
        raise ConfigurationError("only pipelines with a UNet can be estimated")

    metrics = Metrics(Progress(name="test", of=9), costs=costs)
    metrics.begin(RunStart(1, 0, {}, []))
    metrics.observe(iteration(1, {}))
    assert metrics.registry.get_sample_value("tailorpo_flops_total", {"job_namespace": "", "job_name": "test"}) is None


def test_two_runs_in_one_process_do_not_meet() -> None:
    one, other = Metrics(Progress()), Metrics(Progress())
    assert one.registry is not other.registry
