"""Errors of pydantic as sentences: the value, and what would be right."""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from tailorpo_trainer.document.problems import Loc, printable
from tailorpo_trainer.document.schema import field_at, fields, is_map, model_at
from tailorpo_trainer.document.source import resolve
from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.spec.types import PATTERNS

_TRUE = {"y", "yes", "on", "true"}
_FALSE = {"n", "no", "off", "false"}


def explain(loc: Loc, kind: str, given: Any, context: Mapping[str, Any], fallback: str) -> str:
    """The sentence for one error of pydantic, from its type, the given value and its context."""
    value = show(given)
    match kind:
        case "extra_forbidden":
            model = model_at(loc[:-1])
            if len(loc) == 1 and loc[0] in fields(Spec):
                return f"unknown field: did you mean 'spec.{loc[0]}'?"
            return f"unknown field{nearest(str(loc[-1]), list(fields(model)) if model else [])}"
        case "missing":
            return f"is required{_purpose(loc)}"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            suggestion = nearest(given, known, list_all=False) if isinstance(given, str) else ""
            return f"{value} is not {'one of ' if len(known) > 1 else ''}{context['expected']}{suggestion}"
        case "greater_than":
            return f"{value} is too small: must be more than {number_text(context['gt'])}"
        case "greater_than_equal":
            return f"{value} is too small: must be at least {number_text(context['ge'])}"
        case "less_than":
            return f"{value} is too large: must be less than {number_text(context['lt'])}"
        case "less_than_equal":
            return f"{value} is too large: must be at most {number_text(context['le'])}"
        case "multiple_of":
            return f"{value} must be a multiple of {number_text(context['multiple_of'])}"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return f"{value} must be a whole number{_number_hint(given)}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"{value} must be a finite number{_number_hint(given)}"
        case "bool_type" | "bool_parsing":
            return f"{value} must be true or false{_bool_hint(given)}"
        case "string_type":
            return f"{value} must be text{_quote_hint(given)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{value} must be a mapping{_mapping_hint(loc, given)}"
        case "list_type":
            return f"{value} must be a list{_list_hint(loc, given)}"
        case "string_pattern_mismatch" if context["pattern"] in PATTERNS:
            return f"{value} {PATTERNS[context['pattern']]}"
        case "quantity":
            return f"{value} {fallback}"
        case "string_too_short" | "too_short":
            return "must not be empty" if context["min_length"] == 1 else f"{value} is too short"
        case "string_too_long":
            return f"{value} is too long: {len(given)} characters, at most {context['max_length']}"
        case "too_long":
            return f"is too long: {context['actual_length']} entries, at most {context['max_length']}"
    return f"{value}: {fallback}"


def nearest(name: str, known: Sequence[str], *, list_all: bool = True) -> str:
    """`: did you mean ...?`, or the list of all known names if none is similar."""
    plain = {_simplified(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_simplified(name), plain, n=1, cutoff=0.6)
    if close:
        return f": did you mean {plain[close[0]]!r}?"
    return f": known are {', '.join(known)}" if known and list_all else ""


def show(value: Any) -> str:
    """A value as in the file, in one line of at most 80 characters."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    else:
        text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _simplified(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())


def _purpose(loc: Loc) -> str:
    """The description of a missing field, or its value if only one is possible."""
    field = field_at(loc)
    if field is None:
        return ""
    choices = get_args(field.annotation)
    if len(choices) == 1 and isinstance(choices[0], str):
        return f": {choices[0]!r}"
    return f": {(field.description or '').split('. ')[0].rstrip('.')}"


def number_text(value: float) -> str:
    """A bound as text, without an exponent if it is whole and short."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e16 else f"{value:g}"


def _number_hint(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if isinstance(resolve(value), int | float) and not isinstance(resolve(value), bool):
        return ": leave out the quotes"
    # kubectl's reader takes 010 for 8, others for 10: ours refuses it.
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+", value):
        return ": write the decimal point as '.'"
    bare = value.replace("_", "")
    if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", bare):
        return ": without '_' and leading zeros"
    return ""


def _list_hint(loc: Loc, value: Any) -> str:
    """For one text where a list belongs, which is often meant as its entries: `to_q,to_k`."""
    if not isinstance(value, str) or not value.strip():
        return ""
    parts = [value.strip()] if "://" in value else [part.strip() for part in value.split(",") if part.strip()]
    model = model_at(loc)
    if model is None:
        return f": write [{', '.join(map(_plain, parts))}]"
    named = "name" in fields(model) and "=" not in value
    return f": write [{', '.join(f'{{name: {_plain(part)}}}' for part in parts)}]" if named else ""


def _mapping_hint(loc: Loc, value: Any) -> str:
    """For a text where a mapping belongs, which is often the name in it."""
    if not isinstance(value, str) or not value.strip():
        return ""
    model, field = model_at(loc), field_at(loc)
    if model is not None:
        known = list(fields(model))
        return f": write {{name: {_plain(value)}}}" if "name" in known else f": its fields are {', '.join(known)}"
    key, separator, rest = value.partition(":")
    if field is not None and is_map(field) and separator:
        return f": write {{{_plain(key)}: {_plain(rest.strip())}}}, with a space after the colon"
    return ""


def _plain(text: str) -> str:
    """A text as a YAML scalar in a flow sequence, in quotes where it needs them."""
    bare = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]*(://[A-Za-z0-9_./:-]+)?", text)
    return text if bare and isinstance(resolve(text), str) else json.dumps(text, ensure_ascii=False)


def _bool_hint(value: Any) -> str:
    name = value.lower() if isinstance(value, str) else ""
    return ": write true" if name in _TRUE else ": write false" if name in _FALSE else ""


def _quote_hint(value: Any) -> str:
    return f': put it in quotes, "{show(value)}"' if isinstance(value, int | float) else ""
