"""Validate a document: report all problems at once, each with its line, and fill in the defaults."""

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tailorpo_trainer.document import overrides as overriding
from tailorpo_trainer.document.messages import explain, show
from tailorpo_trainer.document.problems import DocumentError, Loc, Problem, overlap, path_text, printable
from tailorpo_trainer.document.schema import fields, inner_model, is_map, is_open, model_at
from tailorpo_trainer.document.source import Document, Node, documents
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import API_VERSION, KIND, TailorPOJob

MAX_BYTES = 1_572_864
"""The largest request that etcd, and so a cluster, accepts."""

GROUP = API_VERSION.split("/")[0]

# Values that replace missing or wrong required fields, so that rules about other fields can still be checked.
_STAND_INS: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {},
    "spec": {},
    "prompts": {"builtin": "animals"},
    "rewards": [{}],
    "method": {},
    "name": "tailorpo",  # of a job, a method, a reward and a volume alike
    "key": "key",
    "fieldPath": "spec.nodeName",
    "mountPath": "/stand-in",
}
_STAND_IN_ITEM = "http://stand-in"  # a prompt, a module's name and an endpoint alike


def read(path: Path | str, overrides: Sequence[str] = ()) -> TailorPOJob:
    """The one job in a file, with `path=value` overrides applied and the method's defaults filled in.

    Raises `DocumentError` (exit 78) with all problems at once, each as `file.yaml:LINE: path: message`.
    """
    jobs = read_all(path, overrides)
    if len(jobs) != 1:
        message = f"holds {len(jobs)} {KIND} documents: give a file with one"
        raise DocumentError([Problem(printable(str(path)), None, "", message)])
    return jobs[0]


def read_all(path: Path | str, overrides: Sequence[str] = ()) -> list[TailorPOJob]:
    """Every `TailorPOJob` of a file; other kinds are ignored. Raises `DocumentError` with the problems of all."""
    source = printable(str(path))
    jobs: list[TailorPOJob] = []
    problems: list[Problem] = []
    for document in _job_documents(documents(_text(Path(path), source), source)):
        try:
            jobs.append(_parse(document.root.plain(), document, source, overrides))
        except DocumentError as error:
            problems += error.problems
    if not jobs and not problems:
        problems = [Problem(source, None, "", f"holds no document of kind {KIND}")]
    if problems:
        raise DocumentError(list(dict.fromkeys(problems)))
    return jobs


def parse(data: Any, source: str = "document", overrides: Sequence[str] = ()) -> TailorPOJob:
    """A job from plain values (as from JSON), with the same checks; problems have no lines."""
    return _parse(deepcopy(data), None, source, overrides)


def _text(path: Path, source: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DocumentError([Problem(source, None, "", f"is larger than {MAX_BYTES} bytes")])
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise DocumentError([Problem(source, None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError([Problem(source, line, "", f"is not UTF-8 text: {error.reason}")]) from None


def _job_documents(found: Iterable[Document]) -> Iterator[Document]:
    """The documents that are jobs or could be, also from a list of `kubectl get`; other kinds are left out."""
    for document in found:
        root = document.root
        kind, version = (_entry(root, key) for key in ("kind", "apiVersion"))
        items = root.value.get("items") if isinstance(root.value, dict) and kind == "List" else None
        if items is not None and isinstance(items.value, list):
            yield from _job_documents(Document(item, document.problems) for item in items.value)
        elif kind in (None, KIND) or version is None or str(version).split("/")[0] == GROUP:
            yield document


def _entry(node: Node, key: str) -> Any:
    return node.value[key].value if isinstance(node.value, dict) and key in node.value else None


def _parse(data: Any, document: Document | None, source: str, overrides: Sequence[str]) -> TailorPOJob:
    root = None if document is None else document.root
    if not isinstance(data, dict):
        line = None if root is None else root.line
        message = f"must be a mapping with kind: {KIND}, is {show(data)}"
        raise DocumentError([*(document.problems if document else ()), Problem(source, line, "", message)])
    overridden, problems = overriding.apply(data, overrides)
    problems += document.problems if document else ()

    def report(loc: Loc, message: str) -> None:
        option = next((text for set_loc, text in overridden.items() if overlap(set_loc, loc)), None)
        line = None if root is None or option else root.line_of(loc)
        problems.append(Problem(option or source, line, path_text(loc), message))

    _prune_nulls(data, TailorPOJob)
    job, errors = _validated(data)
    for loc, message in errors:
        report(loc, message)
    broken = [loc for loc, _ in errors]
    if broken:
        job = _with_stand_ins(data, broken)
    for violation in rules.violations(job.spec) if job else ():
        if not any(overlap(read, loc) for read in (violation.path, *violation.reads) for loc in broken):
            report(violation.path, violation.message + overriding.way_out(violation, overridden, data))
    if problems:
        raise DocumentError(sorted(set(problems), key=lambda problem: (problem.line or 0, problem.path)))
    assert job is not None
    return job.model_copy(update={"spec": rules.resolve(job.spec), "status": None})


def _validated(data: dict[str, Any]) -> tuple[TailorPOJob | None, list[tuple[Loc, str]]]:
    """The job, or the location and message of each error."""
    job, errors = None, []
    try:
        # Aliases only: a cluster would silently drop a snake_case name.
        job = TailorPOJob.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            loc = tuple(key for key in details["loc"] if key != "[key]")
            sentence = explain(loc, details["type"], details["input"], details.get("ctx", {}), details["msg"])
            errors.append((loc, sentence))
    errors += [
        (loc, f"{show(value)} must be a finite number")
        for loc, value in _not_finite(overriding.value_at(data, ("spec", "template")), ("spec", "template"))
        if not any(overlap(loc, known) for known, _ in errors)
    ]
    return job, errors


def _not_finite(value: Any, loc: Loc) -> Iterator[tuple[Loc, float]]:
    """Numbers that JSON cannot represent, in fields that are passed to Kubernetes unchecked."""
    if isinstance(value, float) and not math.isfinite(value):
        yield loc, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _not_finite(entry, (*loc, key))


def _prune_nulls(data: Any, model: type[BaseModel]) -> None:
    """Remove known fields that are null, as the API server does before it fills in defaults."""
    if isinstance(data, list):
        for entry in data:
            _prune_nulls(entry, model)
    if not isinstance(data, dict):
        return
    for name, field in fields(model).items():
        if name in data and data[name] is None:
            del data[name]
        if is_map(field) and isinstance(data.get(name), dict):
            data[name] = {key: value for key, value in data[name].items() if value is not None}
        inner = inner_model(field)
        if inner is not None and name in data:
            _prune_nulls(data[name], inner)


def _with_stand_ins(data: dict[str, Any], broken: Iterable[Loc]) -> TailorPOJob | None:
    """The document with stand-ins for wrong values, to check the rules that do not read those fields."""
    for loc in sorted(broken, key=len, reverse=True):
        parent = overriding.value_at(data, loc[:-1])
        if isinstance(parent, dict) and loc:
            parent.pop(loc[-1], None)
        elif isinstance(parent, list):
            parent[int(loc[-1])] = {} if model_at(loc) or is_open(loc) else _STAND_IN_ITEM
    _fill(data, TailorPOJob)
    return _validated(data)[0]


def _fill(data: Any, model: type[BaseModel]) -> None:
    if isinstance(data, list):
        for entry in data:
            _fill(entry, model)
    if not isinstance(data, dict):
        return
    for name, field in fields(model).items():
        if field.is_required() and name not in data:
            data[name] = deepcopy(_STAND_INS[name])
        inner = inner_model(field)
        if inner is not None and name in data:
            _fill(data[name], inner)
