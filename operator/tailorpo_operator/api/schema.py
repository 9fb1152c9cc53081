"""From pydantic's JSON schema to the structural schema of a CustomResourceDefinition.

Structural means: no references, no choice between types, no `null` (which the API server and `tailorpo` treat as an
absent field before validation), and unknown fields are refused by default.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tailorpo_trainer.spec.types import PATTERNS

Schema = dict[str, Any]
Extend = Callable[[str, Schema], None]
"""A function that adds to the schema of an object, given its model's name."""

COPIED = ("enum", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum", "multipleOf",
          "pattern", "format")  # fmt: skip
FORMATS = {"integer": "int64", "number": "double"}


def structural(schema: Mapping[str, Any], extend: Extend = lambda model, schema: None) -> Schema:
    """The structural schema of a model's JSON schema."""
    return _Converter(schema.get("$defs", {}), extend).convert(schema)


class _Converter:
    def __init__(self, models: Mapping[str, Schema], extend: Extend) -> None:
        self.models = models
        self.extend = extend

    def convert(self, schema: Mapping[str, Any]) -> Schema:
        """Converts a schema and all schemas below it."""
        if "anyOf" in schema:
            return self.any_of(schema)
        if "$ref" in schema:
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self.models[schema["$ref"].rsplit("/", 1)[-1]], **siblings}
        if "const" in schema:
            schema = {**schema, "enum": [schema["const"]]}
        converted: Schema = {"type": schema["type"]}
        if "description" in schema:
            converted["description"] = _paragraphs(schema["description"])
        converted |= {"format": FORMATS[schema["type"]]} if schema["type"] in FORMATS else {}
        converted |= {key: schema[key] for key in COPIED if key in schema}
        for end in ("Minimum", "Maximum"):  # OpenAPI 3.0: a number and a flag
            if f"exclusive{end}" in schema:
                converted |= {end.lower(): schema[f"exclusive{end}"], f"exclusive{end}": True}
        converted |= _default(schema)
        if "items" in schema:
            converted["items"] = _without_defaults(self.convert(schema["items"]))
        if "properties" in schema:
            converted["properties"] = {name: self.convert(field) for name, field in schema["properties"].items()}
            converted |= {"required": schema["required"]} if "required" in schema else {}
            self.extend(schema["title"], converted)
        elif schema["type"] == "object":
            converted |= self.mapping(schema)
        return converted

    def any_of(self, schema: Mapping[str, Any]) -> Schema:
        """The one choice that is not null, or a Kubernetes quantity, which is a number or text."""
        siblings = {key: value for key, value in schema.items() if key != "anyOf"}
        choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        if len(choices) == 1:
            return self.convert({**choices[0], **siblings})
        assert [choice["type"] for choice in choices] == ["integer", "string"], choices
        bounds = {key: value for choice in choices for key, value in choice.items() if key in COPIED}
        description = {"description": _paragraphs(siblings["description"])} if "description" in siblings else {}
        return {
            **description,
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            **bounds,
        }

    def mapping(self, schema: Mapping[str, Any]) -> Schema:
        """A mapping with any keys, to values of one type or of any type."""
        patterns = schema.get("patternProperties")
        values = next(iter(patterns.values())) if patterns else schema["additionalProperties"]
        if values is True:
            return {"x-kubernetes-preserve-unknown-fields": True}
        return {"additionalProperties": self.convert(values)} | _key_rule(schema)


def _key_rule(schema: Mapping[str, Any]) -> Schema:
    """The rules of a JSON schema for keys as CEL rules, because a structural schema has none."""
    names = schema.get("propertyNames", {})
    pattern = next(iter(schema.get("patternProperties", {})), None)
    length = f"key.size() >= {names['minLength']} && key.size() <= {names['maxLength']}"
    rules = [(length, f"each key must have {names['minLength']} to {names['maxLength']} characters")]
    if pattern is not None:
        rules.append((f"key.matches(r'{pattern}')", f"each key {PATTERNS[pattern]}"))
    return {
        "x-kubernetes-validations": [
            {"rule": f"self.all(key, {condition})", "message": message} for condition, message in rules
        ]
    }


def _default(schema: Mapping[str, Any]) -> Schema:
    """A field's default. Defaults of objects are complete, because the API server validates them as they are."""
    value = schema.get("default")
    return {} if value in (None, [], {}) else {"default": _without_empty(value)}


def _without_defaults(schema: Schema) -> Schema:
    """The schema of a list's entries.

    The API server would fill in their defaults, and kubectl compares lists as wholes: each further `kubectl apply` of
    the same file would be a change, or a conflict with the first.
    """
    schema = {key: value for key, value in schema.items() if key != "default"}
    for key in schema.keys() & {"items", "additionalProperties"}:
        schema[key] = _without_defaults(schema[key]) if isinstance(schema[key], dict) else schema[key]
    for key in schema.keys() & {"properties"}:
        schema[key] = {name: _without_defaults(field) for name, field in schema[key].items()}
    return schema


def has_defaults(schema: Schema) -> bool:
    """Whether the API server may fill in something below this schema."""
    fields = schema.get("properties", {}).values()
    return any("default" in field or has_defaults(field) for field in fields)


def _without_empty(value: Any) -> Any:
    """A default without the fields whose values mean the same as absent ones."""
    if not isinstance(value, dict):
        return value
    return {key: _without_empty(entry) for key, entry in value.items() if entry not in (None, [], {})}


def _paragraphs(text: str) -> str:
    """A description with one line per paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))
