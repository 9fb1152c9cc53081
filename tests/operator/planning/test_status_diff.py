"""Which statuses are worth a write."""

from typing import Any

import pytest

from tailorpo_operator.api.types import Checkpoint, Metrics, Progress, Status
from tailorpo_operator.planning.status_diff import difference, newly_ended, paths
from tests.operator.stories import NOON, at, begun, over, running

STEP = {"step": 10, "of": 100, "steps": "10/100", "percent": 10.0, "updated": NOON}
BEFORE = running(progress=Progress(**STEP), metrics=Metrics(reward=0.5))


def progress(**changes: Any) -> Progress:
    return Progress(**{**STEP, **changes})


def test_what_an_older_definition_does_not_keep_is_no_difference() -> None:
    sent = running(begun(accelerators=8), reason="NotReady")
    kept = running()
    dropped = {*paths(sent.to_dict())} - {*paths(kept.to_dict())}
    assert dropped == {("reason",), ("attempts", "[]", "accelerators")}
    assert difference(kept, sent) == "change"
    assert difference(kept, sent, dropped) == "none"
    assert difference(kept, sent.replace(message="another"), dropped) == "change"


def test_the_same_is_none() -> None:
    assert difference(BEFORE, BEFORE) == "none"
    assert difference(Status(), Status()) == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"progress": progress(updated=at(30))},
        {"progress": progress(eta="1h", eta_seconds=3600.0)},
        {"progress": progress(images_per_second=2.0)},
    ],
)
def test_that_time_passes_is_none(fields: dict[str, Any]) -> None:
    assert difference(BEFORE, BEFORE.replace(**fields)) == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"progress": progress(step=11)},
        {"progress": progress(of=200)},
        {"progress": None},
        {"metrics": Metrics(reward=0.6)},
        {"metrics": Metrics(reward=0.5, gap=0.1)},
        {"progress": progress(step=11), "metrics": None},
    ],
)
def test_a_step_or_a_figure_is_progress(fields: dict[str, Any]) -> None:
    assert difference(BEFORE, BEFORE.replace(**fields)) == "progress"


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "new"},
        {"phase": "Restarting"},
        {"observed_generation": 2},
        {"restarts": 1},
        {"checkpoint": Checkpoint(uri="s3://a/b", step=10, time=NOON)},
        {"attempts": [begun(1, reason="Suspended")]},
        {"conditions": []},
        {"message": "new", "progress": progress(step=11)},
    ],
)
def test_everything_else_is_a_change(fields: dict[str, Any]) -> None:
    assert difference(BEFORE, BEFORE.replace(**fields)) == "change"
    assert difference(BEFORE.replace(**fields), BEFORE) == "change"


def test_an_attempt_ends_once_whether_or_not_another_has_begun() -> None:
    first, second = running(begun(1)), running(over(1), begun(2))
    assert newly_ended(Status(), first) == []
    assert newly_ended(first, running(over(1))) == [over(1)]
    assert newly_ended(first, second) == [over(1)]
    assert newly_ended(second, running(over(1), over(2))) == [over(2)]
    assert newly_ended(second, second) == []
