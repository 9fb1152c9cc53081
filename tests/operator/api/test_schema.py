"""A structural schema says what the model says, in the words that a definition may use."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tailorpo_operator.api.schema import structural
from tailorpo_trainer.spec.types import LabelKey, LabelValue, Quantity, SpecModel, Text


class Inner(SpecModel):
    """The inner object."""

    size: int = Field(3, ge=1, le=9, multiple_of=3, description="Its size.")


class Outer(SpecModel):
    """First line
    goes on.

    Another paragraph.
    """

    inner: Inner = Field(Inner(), description="One of them.")
    maybe: Inner | None = None
    several: list[Inner] = Field([], min_length=1, max_length=4)
    share: float | None = Field(None, gt=0, lt=1)
    choice: Literal["a", "b"] = "a"
    kind: Literal["x"] = Field(description="Only x.")
    text: Text | None = None
    empty: str = ""
    no: bool = False
    amount: Quantity | None = Field(None, description="How much.")
    labels: dict[LabelKey, LabelValue] = Field({}, max_length=5)
    free: dict[str, Any] | None = Field(None, max_length=6)
    words: list[Text] = Field(["a"])


SCHEMA = structural(Outer.model_json_schema(by_alias=True))
INNER: dict[str, Any] = {
    "type": "object",
    "description": "The inner object.",
    "properties": {
        "size": {
            "type": "integer",
            "format": "int64",
            "minimum": 1,
            "maximum": 9,
            "multipleOf": 3,
            "default": 3,
            "description": "Its size.",
        }
    },
}
PLAIN = INNER | {"properties": {"size": {k: v for k, v in INNER["properties"]["size"].items() if k != "default"}}}
"""In a list, where no defaults are filled in."""

EXPECTED: dict[str, dict[str, Any]] = {
    "inner": INNER | {"description": "One of them.", "default": {"size": 3}},
    "maybe": INNER,
    "several": {"type": "array", "items": PLAIN, "minItems": 1, "maxItems": 4},
    "share": {
        "type": "number",
        "format": "double",
        "minimum": 0.0,
        "exclusiveMinimum": True,
        "maximum": 1.0,
        "exclusiveMaximum": True,
    },
    "choice": {"type": "string", "enum": ["a", "b"], "default": "a"},
    "kind": {"type": "string", "enum": ["x"], "description": "Only x."},
    "text": {"type": "string", "minLength": 1, "maxLength": 1024},
    "empty": {"type": "string", "default": ""},
    "no": {"type": "boolean", "default": False},
    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 6},
    "words": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 1024}, "default": ["a"]},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_of_field(name: str) -> None:
    assert SCHEMA["properties"][name] == EXPECTED[name]


def test_an_amount_is_a_number_or_text() -> None:
    amount = SCHEMA["properties"]["amount"]
    assert amount["x-kubernetes-int-or-string"] is True
    assert amount["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert (amount["minimum"], amount["maxLength"], amount["description"]) == (0, 32, "How much.")
    assert "type" not in amount


def test_the_keys_of_a_mapping_are_judged_by_cel() -> None:
    labels = SCHEMA["properties"]["labels"]
    assert labels["additionalProperties"]["maxLength"] == 63
    assert labels["maxProperties"] == 5
    assert [rule["message"] for rule in labels["x-kubernetes-validations"]] == [
        "each key must have 1 to 317 characters",
        "each key must be a label's key, such as team or example.com/team",
    ]


def test_what_is_required_and_how_it_reads() -> None:
    assert SCHEMA["required"] == ["kind"]
    assert SCHEMA["description"] == "First line goes on.\n\nAnother paragraph."


def test_a_choice_of_types_is_refused() -> None:
    class Ambiguous(BaseModel):
        value: Annotated[int | str | bool, Field()]

    with pytest.raises(AssertionError):
        structural(Ambiguous.model_json_schema())
