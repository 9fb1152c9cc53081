"""Fields of a job that only a newer CustomResourceDefinition knows. Pure.

The API server fills the defaults of its definition into every job. A field that this operator does not know and that
has its default asks for nothing: it is passed over, and left out of the pods' document. Any other unknown field asks
for something that this operator cannot do.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

Object = Mapping[str, Any]
Path = tuple[str | int, ...]


def unknown_fields(error: ValidationError) -> list[Path] | None:
    """The fields for which alone a job is invalid: it has them, and the models do not. None if it has other faults."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    return [each["loc"] for each in errors] if all(each["type"] == "extra_forbidden" for each in errors) else None


def without(raw: Object, paths: Sequence[Path]) -> dict[str, Any]:
    """A copy of an object without some of its fields."""
    copied: dict[str, Any] = deepcopy(dict(raw))
    for *parents, name in paths:
        place: Any = copied
        for key in parents:
            place = place[key]
        place.pop(name, None)
    return copied


def is_default(raw: Object, path: Path, schema: Object) -> bool:
    """Whether a field has the default of the schema that the API server serves, which has filled it in."""
    value: Any = raw
    for key in path:
        value = value[key]
    found = field(schema, path)
    return "default" in found and bool(_filled_in(found["default"], found) == value)


def field(schema: Object, path: Path) -> Object:
    """The schema of a field; empty if there is no such field."""
    found: Any = schema
    for key in path:
        found = found.get("items" if isinstance(key, int) else "properties") or {}
        found = found if isinstance(key, int) else found.get(key) or {}
    return dict(found)


def show(raw: Object, path: Path) -> str:
    """A field and its value, for people."""
    value: Any = raw
    for key in path:
        value = value[key]
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
    return f"{name}: {value}" if isinstance(value, str | int | float | bool) else name


def _filled_in(value: Any, schema: Object) -> Any:
    """A value with the defaults below it, as the API server fills them in."""
    if isinstance(value, list):
        return [_filled_in(entry, schema.get("items") or {}) for entry in value]
    if not isinstance(value, Mapping):
        return value
    fields = schema.get("properties") or {}
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    return {name: _filled_in(entry, fields.get(name) or {}) for name, entry in {**defaults, **value}.items()}
