"""Every metric of the operator, with its exact value for a given status, and that the page describes it."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from tailorpo_operator import cli, metrics
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Checkpoint, Status
from tailorpo_operator.controller import job_metrics, manager
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.metrics import PHASES, Jobs, JobsCollector
from tailorpo_operator.settings import Settings
from tests.metrics_page import IDENTITY, OPERATOR, written
from tests.operator.kube.test_cache import raw_job
from tests.operator.stories import NOON, at, begun, finished, over, running

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TEAM = {"job_namespace": "team", "job_name": "animals"}
SPEC: dict[str, Any] = {
    "model": {"name": "s3://models/teams/vision/animals-v2/"},
    "method": {"name": "spo"},
    "rewards": [{"name": "clip-score", "weight": 1.0}, {"name": "colourfulness", "weight": 0.1}],
    "training": {"iterations": 100},
    "workers": 4,
    "scheduling": {"queueName": "research"},
}


def stored(status: Status | Mapping[str, Any] | None = None, name: str = "animals", **more: Any) -> dict[str, Any]:
    """A job as the API server stores it: its defaults are filled in."""
    raw = raw_job(**more) | {"spec": SPEC}
    raw["metadata"] |= {"name": name}
    given = status.to_dict() if isinstance(status, Status) else status
    return raw | ({} if given is None else {"status": given})


def collector(*raws: dict[str, Any], now: datetime = NOON, limit: int = 10) -> JobsCollector:
    cache, found = Cache(), JobsCollector()
    for raw in raws:
        cache.put_job(raw)
    found.source = lambda: job_metrics.jobs(cache.copy_jobs(), now, limit)
    return found


def figures(found: JobsCollector) -> dict[str, Any]:
    """Samples of one job without its labels: by name, or by name and the other labels' values."""
    registry = CollectorRegistry()
    registry.register(found)
    (encode, _) = choose_encoder(OPENMETRICS)
    samples = {}
    for family in openmetrics(encode(registry).decode()):
        for sample in family.samples:
            others = [value for name, value in sample.labels.items() if name not in TEAM]
            if "job_name" in sample.labels:
                assert sample.labels.items() >= TEAM.items()
            samples["/".join([sample.name.removeprefix("tailorpo_"), *others])] = sample.value
    return samples


def of_job(found: JobsCollector) -> dict[str, float]:
    """The figures of the job besides its phase and info."""
    left_out = ("operator_", "job_status/", "job_info/")
    return {name: value for name, value in figures(found).items() if not name.startswith(left_out)}


def test_a_running_job() -> None:
    status = running(
        over(1, "Preempted", ready=at(10), accelerators=8),
        begun(2, start=at(90), ready=at(100), accelerators=8),
        progress={"step": 40, "of": 100},
        metrics={"reward": 1.5, "evaluation": 1.25, "gap": 0.5, "loss": 0.6},
        checkpoint={"uri": "s3://a/b", "step": 30, "time": NOON},
        accelerator_seconds=400,
    )
    assert of_job(collector(stored(status), now=at(150))) == {
        "job_attempts": 2,
        "job_restarts": 1,
        "job_iterations": 100,
        "job_step": 40,
        "job_checkpoint_step": 30,
        "job_reward": 1.5,
        "job_evaluation_reward": 1.25,
        "job_created_timestamp_seconds": NOON.timestamp(),
        "job_start_timestamp_seconds": NOON.timestamp(),
        "job_gpu_seconds_total": 400 + 8 * 50,
    }


def test_a_new_job_has_no_figures_that_are_not_known() -> None:
    found = collector(stored())
    assert of_job(found) == {
        "job_attempts": 0,
        "job_restarts": 0,
        "job_iterations": 100,
        "job_created_timestamp_seconds": NOON.timestamp(),
        "job_gpu_seconds_total": 0,
    }
    states = {name: value for name, value in figures(found).items() if name.startswith("job_status/")}
    assert states == {f"job_status/{phase}": float(phase == "Pending") for phase in PHASES}
    assert figures(found)["job_info/spo/vision/animals-v2/research/clip-score+colourfulness/4"] == 1


def test_a_failed_job() -> None:
    status = finished("Failed", accelerator_seconds=7)
    found = figures(collector(stored(status)))
    assert found["job_failed_reason/Before"] == 1
    assert found["job_completion_timestamp_seconds"] == NOON.timestamp()
    assert found["job_gpu_seconds_total"] == 7
    assert found["job_status/Failed"] == 1
    assert not any(name.startswith("job_failed_reason") for name in figures(collector(stored(finished()))))


def test_a_job_that_waits() -> None:
    condition = {"type": "PodsReady", "status": "False", "lastTransitionTime": "2026-01-01T12:00:10Z", "reason": "R"}
    found = of_job(collector(stored({"phase": "Pending", "conditions": [condition]}), now=at(25)))
    assert found["job_pending_seconds"] == 15


def test_names_in_labels_are_bounded() -> None:
    raw = stored()
    spec = {**SPEC, "model": {"name": "m" * 2000}, "rewards": [{"name": "r" * 1000}] * 16, "scheduling": {}}
    (info,) = (name for name in figures(collector(raw | {"spec": spec})) if name.startswith("job_info/"))
    assert sorted(map(len, info.split("/"))) == [0, 1, 3, 8, 128, 128]


def test_accelerator_time_never_falls() -> None:
    """The end of an attempt is in whole seconds, and written later than it is."""
    last = begun(1, ready=at(0), accelerators=2)
    now, raw = at(9.9), stored(running(last), version=1)
    cache, found = Cache(), JobsCollector()
    found.source = lambda: job_metrics.jobs(cache.copy_jobs(), now, 10)

    def seconds() -> float:
        return float(figures(found)["job_gpu_seconds_total"])

    cache.put_job(raw)
    assert seconds() == pytest.approx(19.8)
    ended = last.replace(end=at(9), reason="Completed")
    cache.put_job(stored(finished(attempts=[ended], accelerator_seconds=18), version=2))
    assert seconds() == pytest.approx(19.8)
    cache.put_job(stored(running(begun(2, ready=at(20), accelerators=4), accelerator_seconds=18), version=3))
    now = at(30)
    assert seconds() == 18 + 40
    cache.drop_job(raw)
    cache.put_job(stored(version=9, uid="again"))
    assert seconds() == 0, "another job of the same name"


def test_active_jobs_then_the_newest_have_series() -> None:
    def made(name: str, hour: int, status: Status | None) -> dict[str, Any]:
        return stored(status, name, uid=name, creationTimestamp=f"2026-01-01T{hour:02}:00:00Z")

    raws = [made("old", 1, running()), made("done", 2, finished()), made("late", 3, finished()), made("new", 4, None)]

    def names(limit: int) -> tuple[set[str], float]:
        found = list(collector(*raws, limit=limit).collect())
        (omitted,) = (family.samples[0].value for family in found if family.name.endswith("_omitted"))
        labels = [sample.labels for family in found for sample in family.samples]
        return {each["job_name"] for each in labels if "job_name" in each}, omitted

    assert names(4) == ({"old", "done", "late", "new"}, 0)
    assert names(3) == ({"old", "late", "new"}, 1)
    assert names(1) == ({"new"}, 3)
    assert names(0) == (set(), 4)


@pytest.mark.parametrize(
    ("options", "environment", "served"),
    [
        ([], {}, 3),
        (["--job-metrics-limit=2"], {}, 2),
        ([], {"TAILORPO_JOB_METRICS_LIMIT": "1"}, 1),
        (["--no-job-metrics"], {}, 0),
        ([], {"TAILORPO_JOB_METRICS": "false"}, 0),
    ],
)
def test_the_switch_and_the_limit(
    options: list[str], environment: dict[str, str], served: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Settings] = []

    class Stub:
        def __init__(self, settings: Settings, *_: Any) -> None:
            given.append(settings)

        async def run(self, *_: Any) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(manager, "Operator", Stub)
        result = CliRunner().invoke(cli.operator, ["--no-leader-elect", *options], env=environment)
    assert result.exit_code == 0, result.output

    async def figures() -> Jobs:
        operator = manager.Operator(given[0])
        for name in ("a", "b", "c"):
            operator._cache.put_job(stored(running(), name, uid=name))
        return operator._figures()

    found = asyncio.run(figures())
    assert (len(found.samples), found.omitted, found.phases) == (served, 3 - served, {"Running": 3})


def test_a_job_of_another_version_does_not_disturb_a_scrape() -> None:
    odd = stored({"phase": "Failed", "attempts": "many", "conditions": []}) | {"spec": {"model": 7}}
    assert of_job(collector(odd)) == {"job_created_timestamp_seconds": NOON.timestamp()}


NOTHING = dict.fromkeys(("pending_duration_seconds", "running_duration_seconds", "restart_lost_steps"), (0, 0))
"""The histograms of a namespace in which nothing has ended: they are there, so that an increase is seen."""


@pytest.fixture
def counted() -> Iterator[Any]:
    """What the histograms have counted in a namespace of the test: sum and count by name."""
    namespaces: list[str] = []

    def count(before: Status, after: Status) -> dict[str, tuple[float, float]]:
        namespaces.append(f"test-{len(namespaces)}")
        job_metrics.observe(namespaces[-1], before, after)
        labels = {"job_namespace": namespaces[-1]}
        get = REGISTRY.get_sample_value
        return {
            name: (get(f"tailorpo_job_{name}_sum", labels) or 0, get(f"tailorpo_job_{name}_count", labels) or 0)
            for name in NOTHING
            if get(f"tailorpo_job_{name}_count", labels) is not None
        }

    yield count
    for namespace in namespaces:
        for histogram in (metrics.PENDING_DURATION, metrics.RUNNING_DURATION, metrics.LOST_STEPS):
            histogram.remove(namespace)


def test_durations_are_counted_once_when_they_are_written(counted: Any) -> None:
    waiting, ready = begun(1), begun(1, ready=at(40))
    ended = ready.replace(end=at(100), reason="Killed", step_to=25)
    saved = Checkpoint(uri="s3://a/b", step=20, time=NOON)
    before, runs = Status(attempts=[waiting]), Status(attempts=[ready])
    again = Status(attempts=[ended, begun(2, start=at(110))], checkpoint=saved)
    assert counted(Status(), before) == NOTHING
    assert counted(before, runs) == {**NOTHING, "pending_duration_seconds": (40, 1)}
    assert counted(runs, runs.replace(checkpoint=saved)) == NOTHING
    assert counted(runs, Status(attempts=[ended])) == {**NOTHING, "running_duration_seconds": (60, 1)}
    assert counted(Status(attempts=[ended]), again) == {**NOTHING, "restart_lost_steps": (5, 1)}
    assert counted(runs, again) == {**NOTHING, "running_duration_seconds": (60, 1), "restart_lost_steps": (5, 1)}
    assert counted(again, again) == NOTHING
    without = Status(attempts=[ended, begun(2)])
    assert counted(Status(attempts=[ended]), without) == {**NOTHING, "restart_lost_steps": (25, 1)}, (
        "no checkpoint: all of it"
    )


@pytest.fixture
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Metric]:
    """All that the process serves, with a job in every state, in the asked format."""
    waits = {"type": "PodsReady", "status": "False", "reason": "R", "lastTransitionTime": "2026-01-01T12:00:10Z"}
    full = running(
        progress={"step": 1}, metrics={"reward": 1.0, "evaluation": 1.0},
        checkpoint={"uri": "s3://a/b", "step": 1, "time": NOON},
    )  # fmt: skip
    cache = Cache()
    cache.put_job(stored(finished("Failed"), "failed", uid="failed"))
    cache.put_job(stored({"phase": "Pending", "conditions": [waits]}, "waiting", uid="waiting"))
    cache.put_job(stored(full, "full", uid="full"))
    monkeypatch.setattr(metrics.JOBS, "source", lambda: job_metrics.jobs(cache.copy_jobs(), NOON, 10))
    for histogram in (metrics.PENDING_DURATION, metrics.RUNNING_DURATION, metrics.LOST_STEPS):
        histogram.labels("team")
    metrics.REQUESTS.labels("get", "200")
    metrics.ATTEMPTS.labels("Completed")
    metrics.WATCH_AGE.labels("pods")
    encode, kind = choose_encoder(request.param)
    parse = openmetrics if "openmetrics" in kind else classic
    return list(parse(encode(REGISTRY).decode()))


@pytest.mark.parametrize("served", [OPENMETRICS, "text/plain"], indirect=True)
def test_the_page_lists_what_is_served(served: list[Metric]) -> None:
    ours = {written(family): family for family in served if family.name.startswith("tailorpo_")}
    ours = {name: family for name, family in ours.items() if not name.endswith("_created")}
    assert ours.keys() == OPERATOR.keys()
    for name, family in ours.items():
        row = OPERATOR[name]
        identity = IDENTITY if name.startswith("tailorpo_job_") else frozenset[str]()
        if row.kind == "histogram":
            identity -= {"job_name"}
        assert (family.type, bool(family.samples)) == (row.kind, True), name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == row.labels | identity


def test_keys_are_those_of_the_cache() -> None:
    cache = Cache()
    cache.put_job(stored())
    assert list(cache.copy_jobs()) == [Key("team", "animals")]
    assert cache.copy_jobs() is not cache.jobs
