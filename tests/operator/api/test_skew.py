"""Fields that only a newer definition knows: at their default they ask for nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from tailorpo_operator.api import skew
from tailorpo_operator.api.types import Job, Status
from tests.operator.stories import SPEC

KNOB = {"type": "integer", "default": 7}
INNER = {"type": "object", "properties": {"level": {"type": "integer", "default": 2}, "free": {"type": "string"}}}
NEWER: dict[str, Any] = {
    "properties": {
        "spec": {
            "properties": {
                "training": {"properties": {"newKnob": KNOB}},
                "section": {**INNER, "default": {}},
                "words": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
                "rewards": {"items": {"properties": {"newKnob": KNOB}}},
                "chosen": {"type": "string"},
                "parts": {
                    "type": "array",
                    "default": [{"name": "a"}],
                    "items": {"properties": {"name": {"type": "string"}, "size": {"type": "integer", "default": 1}}},
                },
            }
        }
    }
}


def raw(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "animals", "uid": "u"}, "spec": {**SPEC, **spec}}


def unknown(job: dict[str, Any]) -> list[skew.Path] | None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(job)
    return skew.unknown_fields(caught.value)


@pytest.mark.parametrize(
    ("fields", "is_default"),
    [
        ({"training": {"newKnob": 7}}, True),
        ({"training": {"newKnob": 8}}, False),
        ({"section": {"level": 2}}, True),
        ({"section": {"level": 3}}, False),
        ({"section": {"level": 2, "free": "x"}}, False),
        ({"words": ["a"]}, True),
        ({"words": []}, False),
        ({"rewards": [{"name": "colourfulness", "newKnob": 7}]}, True),
        ({"rewards": [{"name": "colourfulness"}, {"name": "jpeg-compressibility", "newKnob": 6}]}, False),
        ({"chosen": "x"}, False),
        ({"parts": [{"name": "a", "size": 1}]}, True),
        ({"parts": [{"name": "a", "size": 2}]}, False),
        ({"nowhere": 1}, False),
    ],
)
def test_only_a_default_asks_for_nothing(fields: dict[str, Any], is_default: bool) -> None:
    job = raw(**fields)
    paths = unknown(job)
    assert paths is not None
    assert [skew.is_default(job, path, NEWER) for path in paths] == [is_default]
    assert [skew.is_default(job, path, {}) for path in paths] == [False], "where no schema is published"
    assert Job.model_validate(skew.without(job, paths)).spec is not None
    assert job == raw(**fields), "the job itself is left as it was"


def test_other_faults_are_no_unknown_fields() -> None:
    assert unknown(raw(training={"newKnob": 7, "precision": "fp8"})) is None


def test_a_status_of_another_version_is_read() -> None:
    """A phase or a condition that it adds says nothing to this one, and neither do its further fields."""
    time = "2026-01-01T12:00:00Z"
    known = {"type": "Running", "status": "True", "reason": "Running", "lastTransitionTime": time}
    read = Status.model_validate(
        {
            "phase": "Thinking",
            "conditions": [{**known, "type": "Enchanted"}, known],
            "attempts": [{"number": 1, "x": 1}],
        }
    )
    assert (read.phase, [each.type for each in read.conditions], read.attempts[0].number) == ("Pending", ["Running"], 1)


def test_what_is_shown() -> None:
    job = raw(rewards=[{"name": "a", "newKnob": 8}], section={"level": 3})
    assert skew.show(job, ("spec", "rewards", 0, "newKnob")) == "spec.rewards[0].newKnob: 8"
    assert skew.show(job, ("spec", "section")) == "spec.section"
