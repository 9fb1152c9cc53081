"""Events as they are sent."""

from datetime import UTC, datetime, timedelta, timezone

from tailorpo_operator.planning.actions import RecordEvent
from tailorpo_operator.planning.events import event
from tests.operator.stories import NOON, job

MADE = RecordEvent("Warning", "OOMKilled", "was killed for its memory", "job-uid/1/OOMKilled")


def test_what_is_said_again_has_the_same_name() -> None:
    first, again = event(job(), MADE, NOON), event(job(), MADE, NOON + timedelta(hours=1))
    other = event(job(), RecordEvent("Warning", "OOMKilled", "was killed", "job-uid/2/OOMKilled"), NOON)
    assert first["metadata"] == again["metadata"] != other["metadata"]


def test_its_form() -> None:
    raw = event(job(), MADE, datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))))
    assert raw["metadata"]["name"].startswith("animals.")
    assert raw["metadata"]["namespace"] == raw["involvedObject"]["namespace"] == "team"
    assert raw["involvedObject"]["uid"] == "job-uid"
    assert raw["eventTime"] == "2026-01-01T12:00:00.000000Z"
    assert (raw["type"], raw["reason"], raw["message"]) == ("Warning", "OOMKilled", "was killed for its memory")
    assert all(raw[field] for field in ("action", "reportingComponent", "reportingInstance"))


def test_it_is_never_too_long_to_be_taken() -> None:
    """The API server takes 128 characters of reason and 1024 of message."""
    raw = event(job(), RecordEvent("Normal", "R" * 300, "n" * 5000, "k" * 500), datetime.now(UTC))
    assert (len(raw["reason"]), len(raw["message"])) == (128, 1024)
    assert len(raw["metadata"]["name"]) <= 63
