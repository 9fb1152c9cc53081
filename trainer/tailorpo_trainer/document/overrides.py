"""`--set spec.sampling.steps=10`: values given on the command line, under the same checks as the file's."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tailorpo_trainer.document.problems import DocumentError, Loc, Problem, overlap, path_text, printable
from tailorpo_trainer.document.source import documents
from tailorpo_trainer.spec.violations import Violation

_KEY = r"(?:[^.\[\]\\=]|\\.)+"
_PATH = re.compile(rf"{_KEY}(?:\[[0-9]+\])*(?:\.{_KEY}(?:\[[0-9]+\])*)*")
_STEP = re.compile(rf"\[([0-9]+)\]|({_KEY})")


def apply(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[Loc, str], list[Problem]]:
    """Set each `PATH=VALUE` in the data; returns the option that set each path, and the problems.

    PATH has the form of the messages, `spec.rewards[0].weight`; `\\.` is a dot within a key. The index after the
    last one appends to a list. VALUE is YAML; if it is empty, the field's default applies.
    """
    done: dict[Loc, str] = {}
    problems: list[Problem] = []
    for text in overrides:
        source = f"--set {printable(text)}"
        path, _, value = text.partition("=")
        try:
            loc = _parse_path(path, "=" in text)
            _put(data, loc, _parse_value(value))
            done[loc] = source
        except ValueError as error:
            problems.append(Problem(source, None, "", str(error)))
    return done, problems


def way_out(violation: Violation, overridden: Iterable[Loc], data: Any) -> str:
    """How to leave out what the file says, where an option broke a rule together with it; "" where none did.

    overridden: the paths that options have set. data: the whole document.
    """
    options = list(overridden)
    if not any(overlap(set_loc, read) for set_loc in options for read in (violation.path, *violation.reads)):
        return ""
    if any(overlap(set_loc, violation.path) for set_loc in options):
        # Of a choice of several fields, an option gave one and the file another.
        place = value_at(data, violation.path)
        of_file = [
            (*violation.path, key)
            for key in (place if isinstance(place, dict) else ())
            if not any(overlap(set_loc, (*violation.path, key)) for set_loc in options)
        ]
        given = [set_loc for set_loc in options if set_loc[: len(violation.path)] == violation.path != set_loc]
        if not (violation.exclusive and given and of_file):
            return ""
        return f": add {' '.join(f'--set {path_text(loc)}=' for loc in of_file)}"
    return f"; --set {path_text(violation.path)}= leaves it out" if value_at(data, violation.path) is not None else ""


def value_at(data: Any, loc: Loc) -> Any:
    """The value at a path of plain values; None if there is none."""
    for key in loc:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _parse_path(path: str, complete: bool) -> Loc:
    path = path.strip()
    if not complete or not _PATH.fullmatch(path):
        raise ValueError("must be PATH=VALUE, such as spec.sampling.steps=10 or spec.rewards[0].weight=2")
    return tuple(int(index) if index else re.sub(r"\\(.)", r"\1", key) for index, key in _STEP.findall(path))


def _parse_value(text: str) -> Any:
    try:
        found = documents(text, "value")
    except DocumentError as error:
        reason = error.problems[0].message.removeprefix("is not YAML: ")
        # A shell splits at spaces, and takes quotes for its own.
        hint = ": put the whole option in single quotes" if text.startswith(("[", "{")) else ""
        raise ValueError(f"{text!r} is not a YAML value: {reason}{hint}") from None
    for problem in (problem for document in found for problem in document.problems):
        raise ValueError(f"{text!r} is not a YAML value: {problem.message}")
    if len(found) > 1:
        raise ValueError(f"{text!r} is more than one YAML value")
    return found[0].root.plain() if found else None


def _put(data: Any, loc: Loc, value: Any) -> None:
    """Set a value in place, and create the missing mappings and lists of its path."""
    for depth, key in enumerate(loc):
        last = depth + 1 == len(loc)
        empty: Any = None if last else [] if isinstance(loc[depth + 1], int) else {}
        _check_step(data, loc, depth)
        if isinstance(data, list) and key == len(data):
            data.append(empty)
        if last:
            data[key] = value
        elif isinstance(data, dict) and data.get(key) is None:
            data[key] = empty
        data = data[key]


def _check_step(data: Any, loc: Loc, depth: int) -> None:
    key, parent = loc[depth], path_text(loc[:depth])
    if isinstance(key, str) and isinstance(data, list):
        raise ValueError(f"{parent} is a list: it has no {key!r}, but perhaps {path_text((*loc[:depth], 0, key))}")
    if isinstance(key, str) and not isinstance(data, dict):
        raise ValueError(f"{parent} is not a mapping: it has no {key!r}")
    if isinstance(key, int) and not isinstance(data, list):
        raise ValueError(f"{parent} is not a list: it has no [{key}]")
    if isinstance(key, int) and key > len(data):
        raise ValueError(f"{parent} has {len(data)} entries: [{len(data)}] appends one, [{key}] is too far")
