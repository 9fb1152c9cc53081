"""The status tells what it was told, and stays small and acceptable whatever that is."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_operator.api.status_size import MAX_BYTES, shrink, size
from tailorpo_operator.api.types import (
    KEPT_ATTEMPTS,
    MAX_TOTAL,
    Attempt,
    Checkpoint,
    Condition,
    Metrics,
    Progress,
    Status,
    duration,
)
from tailorpo_operator.planning.builder import PlanBuilder
from tailorpo_trainer.spec import progress as trainer
from tests.operator.stories import NOON, RETRIES, children, job


@pytest.mark.parametrize("strange", ["s3://a/b\nfake: line", "s3://a\t/b", "s3://a/" + "b" * 3000])
def test_an_address_is_whole_or_missing(strange: str) -> None:
    time = "2026-01-01T12:00:00Z"
    said = trainer.Progress(
        step=1, adapter=strange, checkpoint=trainer.Checkpoint(uri=strange, step=1, time=time), phase="Succeeded"
    )
    told = Status().with_progress(said)
    assert (told.adapter, told.checkpoint) == (None, None)


def test_nothing_moves_a_terminal() -> None:
    """Escapes, line breaks and marks that turn the direction of text, from a pod."""
    odd = "a\x1b[2Jb\nc\td\u202ee\u2066f\u0085g"
    attempt = Attempt(number=1, message=odd, reason=odd, node=odd)
    condition = Condition(type="Failed", status="True", reason=odd, message=odd, last_transition_time=NOON)
    raw = Status(message=odd, reason=odd, attempts=[attempt], conditions=[condition]).to_dict()
    assert json.dumps(raw, ensure_ascii=False).isprintable()


CONDITIONS = ["Suspended", "PodsReady", "Running", "Restarting", "Succeeded", "Failed"]


def long(length: int) -> st.SearchStrategy[str]:
    """Texts, most of them as long as that, of characters that cost one to six bytes."""
    return st.builds(lambda text, times: (text * times)[:length], st.text(min_size=1), st.integers(1, length))


times = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))
counts = st.integers(0, 2**31 - 1)
figures = st.floats()
checkpoints = st.builds(Checkpoint, uri=long(2176), step=counts, time=times)
statuses = st.builds(
    Status,
    observed_generation=st.none() | st.integers(0, 2**53),
    message=st.none() | long(5000),
    start_time=times,
    restarts=counts,
    accelerator_seconds=st.none() | st.integers(0, MAX_TOTAL),
    progress=st.builds(Progress, step=counts, steps=long(90), eta=long(90), eta_seconds=figures, percent=figures),
    metrics=st.builds(Metrics, reward=figures, gap=figures, loss=figures, evaluation=figures),
    checkpoint=st.none() | checkpoints,
    resumed_from=st.none() | checkpoints,
    adapter=st.none() | long(2176),
    conditions=st.lists(
        st.builds(
            Condition,
            type=st.sampled_from(CONDITIONS),
            status=st.just("True"),
            lastTransitionTime=times,  # by alias: hypothesis reads the signature
            reason=long(90),
            message=long(5000),
        ),
        max_size=8,
    ),
    attempts=st.lists(
        st.builds(
            Attempt,
            number=st.integers(1, 9),
            start=times,
            ready=times,
            end=times,
            accelerators=st.none() | counts,
            reason=long(90),
            node=long(300),
            message=long(900),
        ),
        max_size=20,
    ),
)


@given(statuses)
def test_a_status_stays_small_and_keeps_what_matters(status: Status) -> None:
    small = shrink(status)
    assert size(small) <= MAX_BYTES < 8192
    assert (small.phase, small.restarts, small.progress, small.metrics) == (
        status.phase,
        status.restarts,
        status.progress,
        status.metrics,
    )
    outline = [(condition.type, condition.status, condition.reason) for condition in status.conditions]
    assert [(condition.type, condition.status, condition.reason) for condition in small.conditions] == outline
    if status.attempts:
        assert small.attempts[-1].replace(message=None) == status.attempts[-1].replace(message=None)
    assert shrink(small) == small
    json.dumps(small.to_dict(), allow_nan=False)


@given(statuses)
def test_what_was_written_is_read_again(status: Status) -> None:
    assert Status.model_validate(status.to_dict()) == status


def test_a_small_status_is_left_alone() -> None:
    status = Status(message="waits", attempts=[Attempt(number=n, message="x" * 50) for n in range(1, 11)])
    assert shrink(status) is status


def test_the_last_attempts_are_kept() -> None:
    status = Status(attempts=[Attempt(number=number) for number in range(1, 15)])
    assert [attempt.number for attempt in status.attempts] == [*range(15 - KEPT_ATTEMPTS, 15)]


def test_figures_are_finite_and_readable() -> None:
    metrics = Metrics(reward=0.28600001335144043, gap=math.nan, loss=math.inf)
    assert metrics == Metrics(reward=0.286)


def test_times_are_in_utc_and_whole_seconds() -> None:
    there = datetime(2026, 1, 1, 14, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert Status(start_time=there).to_dict()["startTime"] == "2026-01-01T12:00:00Z"
    assert Status(start_time=there).start_time == NOON


def test_what_the_trainer_says_is_taken_over() -> None:
    saved = trainer.Checkpoint(uri="s3://a/b/attempt-0001/step-00000003", step=3, time="2026-01-01T12:00:00Z")
    seen = trainer.Progress(
        phase="Running",
        step=3,
        of=7,
        percent=300 / 7,
        eta_seconds=4321.0,
        rates=trainer.Rates(images_per_second=1.5),
        metrics=trainer.Metrics(reward=0.5, gap=0.25),
        checkpoint=saved,
        updated="2026-01-01T12:00:01Z",
    )
    status = Status(metrics=Metrics(evaluation=0.75), resumed_from=Checkpoint(uri="s3://a", step=1, time=NOON))
    raw = status.with_progress(seen).to_dict()
    assert raw["progress"] == {
        "step": 3,
        "of": 7,
        "steps": "3/7",
        "percent": 42.857,
        "etaSeconds": 4321.0,
        "eta": "1h12m",
        "imagesPerSecond": 1.5,
        "updated": "2026-01-01T12:00:01Z",
    }
    assert raw["metrics"] == {"reward": 0.5, "gap": 0.25, "evaluation": 0.75}
    assert raw["checkpoint"] == saved.model_dump()
    assert raw["resumedFrom"]["uri"] == "s3://a"


def test_a_trainer_that_loads_takes_no_step_back() -> None:
    """Until it knows what it goes on from it says step 0."""
    status = Status().with_progress(trainer.Progress(step=0, of=7))
    assert (status.progress and status.progress.steps) == "0/7"
    status = status.with_progress(trainer.Progress(attempt=1, phase="Running", step=5, of=7))
    status = status.with_progress(trainer.Progress(step=0, of=7))
    assert (status.progress and status.progress.steps) == "5/7"
    status = status.with_progress(trainer.Progress(attempt=2, phase="Running", step=4, of=7))
    assert (status.progress and status.progress.steps) == "4/7"


def test_a_uri_is_never_cut() -> None:
    saved = trainer.Checkpoint(uri="s3://a/" + "b" * 4000, step=3, time="2026-01-01T12:00:00Z")
    assert Status().with_progress(trainer.Progress(checkpoint=saved)).checkpoint is None


VALUES: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**20), 2**63, 2**31, 1e308, -1e308, math.inf, "inf", "-inf", "nan", "9" * 400]),
    st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e300", "Running", "2026-01-01"]),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=2),
)
CHECKPOINTS = st.dictionaries(st.sampled_from(["uri", "step", "time"]), VALUES)
RAW_OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("attempt", "phase", "step", "of", "percent", "etaSeconds", "updated", "message"), VALUES),
        "rates": st.dictionaries(st.just("imagesPerSecond"), VALUES),
        "metrics": st.dictionaries(st.sampled_from(["reward", "loss"]), VALUES),
        "checkpoint": CHECKPOINTS,
        "resumedFrom": CHECKPOINTS,
        "error": st.fixed_dictionaries({"class": VALUES, "text": VALUES, "exitCode": VALUES, "rank": VALUES}),
    },
)


@given(RAW_OBJECTS)
def test_whatever_a_pod_says_the_status_can_be_written(raw: dict[str, object]) -> None:
    reported = trainer.Progress.read(json.dumps(raw))
    if reported is not None:
        builder = PlanBuilder(job(), children(), NOON, RETRIES)
        builder.observe_progress(reported)
        json.dumps(builder.plan().status.to_dict(), allow_nan=False)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_instant_that_utc_does_not_have_is_none(time: str) -> None:
    builder = PlanBuilder(job(), children(), NOON, RETRIES)
    builder.observe_progress(trainer.Progress(step=3, of=7, updated=time))
    assert builder.plan().status.progress is None


def test_spans_of_time_for_people() -> None:
    spans = {0: "0s", 59.4: "59s", 60: "1m", 61: "1m1s", 3600: "1h", 4321: "1h12m", 90_000: "1d1h", 8_640_000: "100d"}
    assert {seconds: duration(seconds) for seconds in spans} == spans
