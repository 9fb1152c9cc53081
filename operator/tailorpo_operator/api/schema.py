"""From pydantic's JSON schema to the structural schema of a CustomResourceDefinition.

Structural means: no references, no choice between types, no `null` (which the API server takes for an absent field
before it judges anything, and so does `tailorpo`), and unknown fields are refused without saying so.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from tailorpo_trainer.spec.types import PATTERNS

Schema = dict[str, Any]
Extend = Callable[[str, Schema], None]
"""Adds to the schema of an object, given its model's name."""

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
        """One schema with all below it."""
        if "anyOf" in schema:
            return self.chosen(schema)
        if "$ref" in schema:
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self.models[schema["$ref"].rsplit("/", 1)[-1]], **beside}
        if "const" in schema:
            schema = {**schema, "enum": [schema["const"]]}
        made: Schema = {"type": schema["type"]}
        if "description" in schema:
            made["description"] = _prose(schema["description"])
        made |= {"format": FORMATS[schema["type"]]} if schema["type"] in FORMATS else {}
        made |= {key: schema[key] for key in COPIED if key in schema}
        for end in ("Minimum", "Maximum"):  # OpenAPI 3.0: a number and a flag
            if f"exclusive{end}" in schema:
                made |= {end.lower(): schema[f"exclusive{end}"], f"exclusive{end}": True}
        made |= _default(schema)
        if "items" in schema:
            made["items"] = self.convert(schema["items"])
        if "properties" in schema:
            made["properties"] = {name: self.convert(field) for name, field in schema["properties"].items()}
            made |= {"required": schema["required"]} if "required" in schema else {}
            self.extend(schema["title"], made)
        elif schema["type"] == "object":
            made |= self.mapping(schema)
        return made

    def chosen(self, schema: Mapping[str, Any]) -> Schema:
        """The one choice that is not null, or Kubernetes' amounts, which are numbers or text."""
        beside = {key: value for key, value in schema.items() if key != "anyOf"}
        choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        if len(choices) == 1:
            return self.convert({**choices[0], **beside})
        assert [choice["type"] for choice in choices] == ["integer", "string"], choices
        bounds = {key: value for choice in choices for key, value in choice.items() if key in COPIED}
        description = {"description": _prose(beside["description"])} if "description" in beside else {}
        return {
            **description,
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            **bounds,
        }

    def mapping(self, schema: Mapping[str, Any]) -> Schema:
        """A mapping of free keys: to values of one kind, or passed on unread."""
        patterns = schema.get("patternProperties")
        values = next(iter(patterns.values())) if patterns else schema["additionalProperties"]
        if values is True:
            return {"x-kubernetes-preserve-unknown-fields": True}
        return {"additionalProperties": self.convert(values)} | _key_rule(schema)


def _key_rule(schema: Mapping[str, Any]) -> Schema:
    """JSON schema's rules for keys, which a structural schema lacks, in CEL."""
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
    """A field's default; that of an object written out, because the API server tries its rules on it as it stands."""
    value = schema.get("default")
    return {} if value in (None, [], {}) else {"default": _given(value)}


def _given(value: Any) -> Any:
    """A default without what is the same as absent."""
    if not isinstance(value, dict):
        return value
    return {key: _given(entry) for key, entry in value.items() if entry not in (None, [], {})}


def _prose(text: str) -> str:
    """A description as paragraphs, each one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()))
