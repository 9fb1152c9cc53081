"""Values at the limits that the models allow, and just outside, derived from their JSON schema."""

import math
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from tailorpo_trainer.spec import types
from tests.documents import STRANGE, choices, objects


def spoil_fields(spec: Any, rng: random.Random) -> None:
    """Set one field of a `spec` to a value at a limit that the models allow, or just outside; in place."""
    _, container, schema = rng.choice(objects(spec))
    name = rng.choice([*container, *schema["properties"]] if rng.random() < 0.5 else [*schema["properties"]])
    container[name] = value_of(schema["properties"].get(name, {}), rng, beyond=rng.choice([0, 0, 0.5]))


def edges(schema: Mapping[str, Any], now: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """For each limit of a field and of its list entries: values just inside, and values just outside."""
    for choice in choices(schema):
        match choice.get("type"):
            case "boolean":
                yield [True, False], ["true", 0]
            case "integer" | "number":
                yield from _ends(choice)
            case "string" if "enum" in choice or "const" in choice:
                yield choice.get("enum", [choice.get("const")]), ["x", ""]
            case "string":
                low = {types.HTTP: 8, types.QUANTITY: 1}.get(choice.get("pattern", ""), choice.get("minLength", 0))
                lengths = [low, choice["maxLength"]]
                inside, beyond = (
                    [_letters(choice, length + off) for length, off in zip(lengths, by, strict=True)]
                    for by in ((0, 0), (-1, 1))
                )
                yield inside, [text for text in beyond if text not in inside]
                yield [_letters(choice, lengths[0] + 1)], ["aa\x1f", "a\n"] if "pattern" in choice else [5]
            case "array":
                lengths = [choice.get("minItems", 0), choice["maxItems"]]
                yield (
                    [_entries(now, n) for n in lengths],
                    [_entries(now, n) for n in (lengths[0] - 1, lengths[1] + 1) if n >= 0],
                )
                if isinstance(now, list) and now and not isinstance(now[0], dict):
                    for inside, beyond in edges(choice["items"], now[0]):
                        yield [[value] for value in inside], [[value] for value in beyond]
            case "object" if "maxProperties" in choice:
                most = choice["maxProperties"]
                value = next(iter(now.values()), "1") if isinstance(now, dict) else "1"
                yield (
                    [dict.fromkeys(map("k{}".format, range(n)), value) for n in (0, most)],
                    [dict.fromkeys(map("k{}".format, range(most + 1)), value)],
                )


def _ends(schema: Mapping[str, Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    step = schema.get("multipleOf", 1)
    for bound, sign in (("minimum", -1), ("maximum", 1)):
        limit, open_end = schema.get(bound), schema.get(f"exclusive{bound.capitalize()}")
        if open_end is not None:
            yield [math.nextafter(open_end, -sign * math.inf)], [open_end]
        elif limit is not None:
            yield [limit], [limit + sign * step]
            if schema["type"] == "number":
                yield [limit], [math.nextafter(limit, sign * math.inf)]
    if "multipleOf" in schema:
        yield [2 * step], [2 * step + 1]


def _letters(schema: Mapping[str, Any], length: int) -> str:
    pattern = schema.get("pattern", "")
    if pattern == types.LABEL_KEY and length > 63:  # a long one has a domain
        return ("a" * 63 + ".") * 3 + "a" * (length - 192 - 64) + "/" + "a" * 63
    prefix = {types.HTTP: "http://", types.MOUNT_PATH: "/"}.get(pattern, "")
    letter = "1" if pattern == types.QUANTITY else "a"
    return prefix + letter * (length - len(prefix))


def _entries(now: Any, count: int) -> list[Any]:
    """So many entries like those that are there, each with a name of its own."""
    model = now[0] if isinstance(now, list) and now else "a"
    if not isinstance(model, dict) or not {"name", "mountPath"} & set(model):
        return [model] * count
    key = "mountPath" if "mountPath" in model else "name"
    return [{**model, key: f"{model[key]}{number}"} if number else model for number in range(count)]


def value_of(schema: Mapping[str, Any], rng: random.Random, beyond: float) -> Any:
    """A value that a schema allows, mostly at a limit; each field is just outside with the probability `beyond`."""
    schema = rng.choice(choices(schema))
    wrong = rng.random() < beyond
    if "const" in schema or "enum" in schema:
        return "x" if wrong else rng.choice(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "boolean":
            return rng.choice([0, "true"] if wrong else [True, False])
        case "integer" | "number":
            return _number(schema, rng, wrong)
        case "string":
            return _string(schema, rng, wrong)
        case "array":
            return [value_of(schema["items"], rng, beyond)] * _count(schema, "Items", rng, wrong)
        case "object" if "properties" in schema:
            names = [name for name in schema["properties"] if name in schema.get("required", ()) or rng.random() < 0.2]
            return {name: value_of(schema["properties"][name], rng, beyond) for name in names}
        case "object":
            return _mapping(schema, rng, beyond)
    return deepcopy(rng.choice(STRANGE))


def _number(schema: Mapping[str, Any], rng: random.Random, wrong: bool) -> Any:
    low, high = (schema.get(key, schema.get(f"exclusive{key.capitalize()}", 0)) for key in ("minimum", "maximum"))
    step = schema.get("multipleOf", 1)
    above, below = math.nextafter(low, math.inf), math.nextafter(high, -math.inf)
    if wrong:
        return rng.choice(
            [low - step, high + step, low + step / 2, str(low), math.nextafter(low, -math.inf), low, high]
        )
    inner = [step, 2 * step, 3 * step]
    if schema["type"] == "number":
        return rng.choice([above, below, *inner])
    return rng.choice([low, high, low + step, high - step, *inner])


def _string(schema: Mapping[str, Any], rng: random.Random, wrong: bool) -> str:
    prefix = {types.HTTP: "http://", types.MOUNT_PATH: "/"}.get(schema.get("pattern", ""), "")
    text = prefix + "a" * (_count(schema, "Length", rng, wrong) - len(prefix))
    starts = ["1", "-", "A", ".", "a.b", "a..b", "a/b", "a/b/c", "1Gi", "1.5", "1e3", "+1", "\x1f"]
    ends = ["\n", "-", ".", "/", ":", " ", "A", "_", "1", "é", "\u2003", "\x85", "=", "'"]
    return rng.choice([rng.choice(starts) + text, text + rng.choice(ends), text]) if wrong else text


def _count(schema: Mapping[str, Any], unit: str, rng: random.Random, wrong: bool) -> int:
    low, high = schema.get(f"min{unit}", 0), schema.get(f"max{unit}", 3)
    few = min(high, low + 1)
    choice: int = rng.choice([low, low - 1, high, high + 1] if wrong else [low, few, few, few, high])
    return max(0, choice)


def _mapping(schema: Mapping[str, Any], rng: random.Random, beyond: float) -> dict[str, Any]:
    patterns = schema.get("patternProperties", {})
    values: Any = next(iter(patterns.values()), schema.get("additionalProperties"))
    names = [f"k{number}" for number in range(_count(schema, "Properties", rng, rng.random() < beyond))]
    if values is True:  # not validated
        return {name: {} for name in names}
    if rng.random() < beyond:
        keys = {**schema.get("propertyNames", {}), "pattern": next(iter(patterns), "")}
        names.append(_string(keys, rng, wrong=True))
    return {name: value_of(values, rng, beyond) for name in names}
