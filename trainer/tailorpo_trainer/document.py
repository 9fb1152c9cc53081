"""Read a `TailorPOJob` from YAML, and say everything that is wrong with it at once.

YAML 1.2 as Kubernetes reads it (`1e-4` is a number), with the line of each key kept for the messages.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tailorpo_trainer import rules
from tailorpo_trainer.exits import ConfigurationError
from tailorpo_trainer.spec import API_VERSION, KIND, TailorPOJob

Loc = tuple[str | int, ...]

# What stands in for a missing or wrong required field, so that rules about the others can still be judged.
_PLACEHOLDERS: dict[Loc, Any] = {
    ("apiVersion",): API_VERSION,
    ("kind",): KIND,
    ("metadata",): {"name": "placeholder"},
    ("metadata", "name"): "placeholder",
    ("spec",): {"prompts": {"builtin": "animals"}, "rewards": [{"name": "x"}], "method": {"name": "tailorpo"}},
    ("spec", "prompts"): {"builtin": "animals"},
    ("spec", "rewards"): [{"name": "x"}],
    ("spec", "method"): {"name": "tailorpo"},
    ("spec", "method", "name"): "tailorpo",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where, and what would be right."""

    source: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class DocumentError(ConfigurationError):
    """All problems of one file, one a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def read(path: Path | str, overrides: Sequence[str] = ()) -> TailorPOJob:
    """The one job in a file, with `path=value` overrides applied and method defaults written out.

    Raises `DocumentError` (exit 78) with all problems at once, each as `file.yaml:LINE: path: message`.
    """
    jobs = read_all(path, overrides)
    if len(jobs) != 1:
        raise DocumentError([Problem(str(path), None, "", f"holds {len(jobs)} {KIND} documents: give a file with one")])
    return jobs[0]


def read_all(path: Path | str, overrides: Sequence[str] = ()) -> list[TailorPOJob]:
    """Every `TailorPOJob` of a file (documents of other kinds pass); problems of all of them at once."""
    source = str(path)
    jobs: list[TailorPOJob] = []
    problems: list[Problem] = []
    for tree in _load(Path(path)):
        if isinstance(tree, Mapping) and tree.get("kind", KIND) != KIND and "apiVersion" in tree:
            if not str(tree["apiVersion"]).startswith(API_VERSION.split("/")[0]):
                continue
        try:
            jobs.append(_parse(tree, source, overrides))
        except DocumentError as error:
            problems += error.problems
    if not jobs and not problems:
        problems = [Problem(source, None, "", f"holds no document of kind {KIND}")]
    if problems:
        raise DocumentError(problems)
    return jobs


def parse(data: Any, source: str = "document", overrides: Sequence[str] = ()) -> TailorPOJob:
    """A job from plain values (as from JSON), under the same checks; lines are not known then."""
    return _parse(data, source, overrides)


def dump(job: TailorPOJob) -> str:
    """YAML of a resolved document: every default written out, nulls left out."""
    from io import StringIO

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 110
    out = StringIO()
    yaml.dump(job.model_dump(mode="json", by_alias=True, exclude_none=True), out)
    return out.getvalue()


def _load(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DocumentError([Problem(str(path), None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise DocumentError([Problem(str(path), None, "", f"is not UTF-8 text: {error.reason}")]) from None
    try:
        return [tree for tree in YAML(typ="rt").load_all(text) if tree is not None]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        problem = (error.problem or "is not YAML").replace("\n", " ")
        raise DocumentError([Problem(str(path), line, "", f"is not YAML: {problem}")]) from None
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # ruamel's constructors raise plain errors for some malformed scalars (a date with month 13, say).
        text = " ".join(str(error).split())[:200]
        raise DocumentError([Problem(str(path), None, "", f"is not YAML that can be read: {text}")]) from None


def _parse(tree: Any, source: str, overrides: Sequence[str]) -> TailorPOJob:
    data = _plain(tree)
    if not isinstance(data, dict):
        raise DocumentError([Problem(source, _line(tree, ()), "", f"must be a mapping with kind: {KIND}, is {_show(data)}")])
    overridden, problems = _override(data, overrides)
    broken: list[Loc] = []
    try:
        job = TailorPOJob.model_validate(data)
    except ValidationError as error:
        for details in error.errors():
            loc = _yaml_loc(details["loc"])
            broken.append(loc)
            problems.append(_problem(tree, source, overridden, loc, _explain(details, data)))
        job = _best_effort(data, broken)
    for finding in rules.findings(job.spec):
        if not any(_overlap(read, loc) for read in (finding.path, *finding.reads) for loc in broken):
            problems.append(_problem(tree, source, overridden, finding.path, finding.message))
    if problems:
        raise DocumentError(sorted(set(problems), key=lambda problem: (problem.line or 0, problem.path)))
    return job.model_copy(update={"spec": rules.resolve(job.spec)})


def _best_effort(data: dict[str, Any], broken: Iterable[Loc]) -> TailorPOJob:
    """The document without what is wrong in it: only for judging the rules that do not read those fields."""
    for loc in sorted(broken, key=len, reverse=True):
        parent = _get(data, loc[:-1])
        if isinstance(parent, dict) and loc:
            parent.pop(str(loc[-1]), None)
        elif isinstance(parent, list):
            parent.clear()
    for loc, value in _PLACEHOLDERS.items():
        parent = _get(data, loc[:-1])
        if isinstance(parent, dict) and (loc[-1] not in parent or parent[str(loc[-1])] in ({}, [], None)):
            parent[str(loc[-1])] = value
    try:
        return TailorPOJob.model_validate(data)
    except ValidationError:
        # Required keys inside lists and optional parts: give up the rules rather than the message.
        spec = dict(_PLACEHOLDERS[("spec",)])
        return TailorPOJob.model_validate(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "placeholder"}, "spec": spec}
        )


def _override(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[Loc, str], list[Problem]]:
    """Apply `a.b[0].c=value` in place; return which paths were set and what could not be."""
    done: dict[Loc, str] = {}
    problems = []
    for text in overrides:
        path, equals, value = text.partition("=")
        loc = tuple(int(key) if key.isdigit() else key for key in re.split(r"[.\[\]]+", path.strip()) if key)
        source = f"--set {text}"
        if not equals or not loc:
            problems.append(Problem(source, None, "", "must be PATH=VALUE, such as spec.sampling.steps=10"))
            continue
        try:
            parsed = _plain(YAML(typ="rt").load(value)) if value.strip() else None
        except (YAMLError, ValueError, TypeError, AttributeError):
            problems.append(Problem(source, None, path, f"{value!r} is not a YAML value"))
            continue
        if _put(data, loc, parsed):
            done[loc] = source
        else:
            problems.append(Problem(source, None, path, "leads through a value that is neither a mapping nor a list"))
    return done, problems


def _put(data: Any, loc: Loc, value: Any) -> bool:
    for key, following in zip(loc, (*loc[1:], None), strict=True):
        last = following is None
        if isinstance(data, dict):
            name = str(key)
            if last:
                data[name] = value
                return True
            if data.get(name) is None:
                data[name] = [] if isinstance(following, int) else {}
            data = data[name]
        elif isinstance(data, list) and isinstance(key, int) and key <= len(data):
            if key == len(data):
                data.append({})
            if last:
                data[key] = value
                return True
            data = data[key]
        else:
            return False
    return False


def _problem(tree: Any, source: str, overridden: Mapping[Loc, str], loc: Loc, message: str) -> Problem:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).lstrip(".")
    for set_loc, text in overridden.items():
        if _overlap(set_loc, loc):
            return Problem(text, None, path, message)
    return Problem(source, _line(tree, loc), path, message)


def _line(tree: Any, loc: Loc) -> int | None:
    """The line of the deepest key of a path that the file has."""
    line = tree.lc.line + 1 if isinstance(tree, CommentedMap | CommentedSeq) else None
    for key in loc:
        if isinstance(tree, CommentedMap) and key in tree:
            line = tree.lc.key(key)[0] + 1
        elif isinstance(tree, CommentedSeq) and isinstance(key, int) and key < len(tree):
            line = tree.lc.item(key)[0] + 1
        else:
            return line
        tree = tree[key]
    return line


def _explain(details: Any, data: Any) -> str:
    """What pydantic found, as a sentence with the value and what would be right."""
    kind, context, value = details["type"], details.get("ctx", {}), _show(details.get("input"))
    loc = details["loc"]
    match kind:
        case "extra_forbidden":
            known = _known_fields(loc[:-1])
            return f"unknown field{_nearest(str(loc[-1]), known)}"
        case "missing":
            return f"is required{_description(loc)}"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            guess = _nearest(str(details.get("input")), known, verbose=False)
            return f"{value} is not {'one of ' if len(known) > 1 else ''}{context['expected']}{guess}"
        case "greater_than":
            return f"{value} is too small: must be more than {context['gt']:g}"
        case "greater_than_equal":
            return f"{value} is too small: must be at least {context['ge']:g}"
        case "less_than":
            return f"{value} is too large: must be less than {context['lt']:g}"
        case "less_than_equal":
            return f"{value} is too large: must be at most {context['le']:g}"
        case "multiple_of":
            return f"{value} must be a multiple of {context['multiple_of']:g}"
        case "int_type" | "int_from_float" | "int_parsing":
            return f"{value} must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return f"{value} must be a finite number"
        case "bool_type" | "bool_parsing":
            return f"{value} must be true or false"
        case "string_type":
            return f"{value} must be text{_quote_hint(details.get('input'))}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{value} must be a mapping"
        case "list_type":
            return f"{value} must be a list"
        case "string_pattern_mismatch" if loc[-1] == "name":
            return f"{value} must be lower-case letters, digits and '-', beginning with a letter, not ending with '-'"
        case "string_pattern_mismatch":
            return f"{value} must match {context['pattern']}"
        case "string_too_short" | "too_short":
            return f"{value} is too short: at least {context['min_length']}{_unit(kind)}"
        case "string_too_long" | "too_long":
            return f"{value} is too long: at most {context['max_length']}{_unit(kind)}"
    return f"{value}: {details['msg']}"


def _unit(kind: str) -> str:
    return " characters" if kind.startswith("string") else " entries"


def _quote_hint(value: Any) -> str:
    return f': put it in quotes, "{value}"' if isinstance(value, int | float) else ""


def _model_at(loc: Sequence[str | int]) -> type[BaseModel] | None:
    """The pydantic model that describes the object at a path."""
    model: Any = TailorPOJob
    for key in loc:
        if isinstance(key, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if key not in fields:
            return None
        model = next((part for part in _parts(fields[key].annotation)), None)
        if model is None:
            return None
    return model


def _parts(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models inside an annotation such as `list[Reward] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)


def _known_fields(loc: Sequence[str | int]) -> list[str]:
    model = _model_at(loc)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _description(loc: Sequence[str | int]) -> str:
    model = _model_at(loc[:-1])
    for name, field in model.model_fields.items() if model else ():
        if (field.alias or name) == loc[-1] and field.description:
            return f": {field.description.split('. ')[0].rstrip('.')}"
    return ""


def _nearest(word: str, known: Sequence[str], verbose: bool = True) -> str:
    lowered = {name.lower().replace("_", "").replace("-", ""): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), lowered, n=1, cutoff=0.6)
    if close:
        return f": did you mean {lowered[close[0]]!r}?"
    return f": known are {', '.join(known)}" if known and verbose else ""


def _show(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) and value is not None else {True: "true", False: "false", None: "null"}[value]
    return text if len(text) <= 80 else f"{text[:77]}..."


def _yaml_loc(loc: Sequence[str | int]) -> Loc:
    return tuple(loc)


def _get(data: Any, loc: Loc) -> Any:
    for key in loc:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _overlap(one: Loc, other: Loc) -> bool:
    """Whether one path lies on the way to the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _plain(tree: Any) -> Any:
    """Plain dicts, lists and scalars of what the YAML reader built, with text keys."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple | set):
        return [_plain(value) for value in tree]
    if isinstance(tree, bool) or tree is None:
        return tree
    for kind in (int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    return tree
