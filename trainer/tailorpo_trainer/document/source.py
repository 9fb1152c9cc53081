"""YAML text as values that know the line they were written on.

ruamel parses; the meaning of a scalar is decided here, because kubectl reads the same file. It is YAML 1.2's core
schema, but a number that kubectl's reader (go-yaml, partly YAML 1.1) would read differently (`010`, `1_000`) stays
text, which a numeric field then refuses. Values have JSON's types only: no dates, sets or objects.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from tailorpo_trainer.document.problems import DocumentError, Loc, Problem, path_text

MAX_DEPTH = 64
MAX_VALUES = 100_000
"""Aliases count with all their values: a few lines of them ("billion laughs") could fill the memory."""

Event = Any
"""An event of ruamel, whose classes declare no attributes."""

Scalar = str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")


@dataclass(frozen=True)
class Node:
    """A value and the line of its key (of itself, in a list); `size` counts the values in it."""

    value: Any  # Scalar | dict[str, Node] | list[Node]
    line: int
    size: int = 1

    def children(self) -> list["Node"]:
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []

    def plain(self) -> Any:
        """Plain dicts, lists and scalars, shared with nothing."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def line_of(self, loc: Loc) -> int:
        """The line of the deepest key of a path that exists in the file."""
        node = self
        for key in loc:
            keys = node.value if isinstance(node.value, dict) else range(len(node.children()))
            if key not in keys:
                break
            node = node.value[key]
        return node.line


@dataclass
class Document:
    """One document of a file, and its errors as YAML."""

    root: Node
    problems: list[Problem]


def documents(text: str, source: str) -> list[Document]:
    """The documents of a text, without empty ones. Raises `DocumentError` if the text is not YAML."""
    try:
        found = list(_Builder(text, source).documents())
    except MarkedYAMLError as error:
        raise DocumentError([Problem(source, *_syntax(error))]) from None
    except YAMLError as error:
        position = getattr(error, "position", None)
        line = None if position is None else text.count("\n", 0, position) + 1
        reason = str(error).split("\n")[0]
        raise DocumentError([Problem(source, line, "", f"is not YAML: {reason}")]) from None
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # For example `"\UFFFFFFFF"`, which is not a code point: ruamel's scanner does not check it.
        no_character = isinstance(error, OverflowError) or "chr()" in str(
            error
        )  # the message differs between versions of Python
        reason = "an escape (\\x, \\u or \\U) names no character that there is" if no_character else str(error)
        raise DocumentError([Problem(source, None, "", f"is not YAML: {reason}")]) from None
    return [document for document in found if document.root.value is not None or document.problems]


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        # A float is infinite beyond 400 digits; Python refuses to convert more than 4300.
        return int(text) if len(text) <= 400 else float(text)
    if _OTHER_BASE.fullmatch(text) and len(text) <= 400:
        return int(text, 0)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
        number = float(text)
        # JSON has one type of number: kubectl sends 20.0 and 2e1 as 20.
        return int(number) if number.is_integer() and abs(number) <= 2**53 else number
    return text


@dataclass
class _Builder:
    text: str
    source: str
    anchors: dict[str, Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events: Iterator[Event] = YAML(typ="safe", pure=True).parse(self.text)
        self.ends = [match.start() for match in re.finditer("\n", self.text)]

    def documents(self) -> Iterator[Document]:
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                self.anchors, self.problems = {}, []
                root = self.node(next(self.events), ())
                yield Document(root, self.problems)

    def line(self, event: Event) -> int:
        # Counted by line feeds, as editors do; ruamel also counts U+2028 and similar characters.
        return bisect_right(self.ends, event.start_mark.index - 1) + 1

    def add_problem(self, event: Event, loc: Loc, message: str) -> None:
        self.problems.append(Problem(self.source, self.line(event), path_text(loc), message))

    def node(self, event: Event, loc: Loc) -> Node:
        """The value that begins with an event; consumes all its events."""
        if len(loc) > MAX_DEPTH:
            message = f"is nested deeper than {MAX_DEPTH} levels"
            raise DocumentError([Problem(self.source, self.line(event), "", message)])
        if isinstance(event, AliasEvent):
            return self.alias(event, loc)
        if isinstance(event, MappingStartEvent):
            self.check_tag(event, loc, "map")
            node = self.mapping(event, loc)
        elif isinstance(event, SequenceStartEvent):
            self.check_tag(event, loc, "seq")
            node = self.sequence(event, loc)
        else:
            node = Node(self.scalar(event, loc), self.line(event))
        if node.size > MAX_VALUES:
            message = f"holds more than {MAX_VALUES} values, with its aliases written out"
            raise DocumentError([Problem(self.source, self.line(event), path_text(loc), message)])
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Event, loc: Loc) -> Node:
        if event.anchor not in self.anchors:
            self.add_problem(event, loc, f"alias *{event.anchor} has no finished anchor &{event.anchor} above it")
            return Node(None, self.line(event))
        return replace(self.anchors[event.anchor], line=self.line(event))

    def sequence(self, start: Event, loc: Loc) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.node(event, (*loc, len(items))))
        return Node(items, self.line(start), 1 + sum(item.size for item in items))

    def mapping(self, start: Event, loc: Loc) -> Node:
        entries: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.key(event, loc)
            merges = key == "<<" and event.implicit[0]
            node = self.node(next(self.events), (*loc, key))
            if merges:
                merged = {**self.merge(event, loc, node), **merged}
            elif key in entries:
                self.add_problem(event, (*loc, key), f"stands twice: first in line {entries[key].line}")
            else:
                entries[key] = replace(node, line=self.line(event))
        entries = {**merged, **entries}
        return Node(entries, self.line(start), 1 + sum(entry.size for entry in entries.values()))

    def key(self, event: Event, loc: Loc) -> str:
        """Keys are text: 1 and true become "1" and "true", as in kubectl's JSON."""
        if isinstance(event, ScalarEvent):
            text = self.text_of(event, loc)
            return text if text is not None else ""
        self.add_problem(event, loc, "has a key that is no text")
        self.node(event, loc)
        return "?"

    def merge(self, event: Event, loc: Loc, node: Node) -> dict[str, Node]:
        """The entries that `<<` adds; in a list of mappings, the first one with a key wins."""
        merged: dict[str, Node] = {}
        for part in node.value if isinstance(node.value, list) else [node]:
            if isinstance(part.value, dict):
                merged = {**part.value, **merged}
            else:
                self.add_problem(event, (*loc, "<<"), "must be an alias of a mapping, or a list of them")
        return merged

    def scalar(self, event: Event, loc: Loc) -> Scalar:
        text = self.text_of(event, loc)
        if text is None:
            return None
        plain, _ = event.implicit
        if plain:
            return resolve(text)
        kind = "" if event.tag is None else event.tag.removeprefix(_TAG)
        if kind in ("", "!", "str"):
            return text
        kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}
        value = resolve(text)
        if not isinstance(value, kinds.get(kind, ())) or (kind in ("int", "float") and isinstance(value, bool)):
            self.add_problem(event, loc, f"{text!r} cannot have the tag {_shorthand(event.tag)}: leave the tag out")
            return None
        return value

    def text_of(self, event: Event, loc: Loc) -> str | None:
        """The text of a scalar; None, with a problem added, if it holds NUL or an unpaired surrogate."""
        text: str = event.value
        # JSON writes characters beyond U+FFFF as two escapes.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _has_surrogates(text) else text
        if "\0" in text or ("\ufffd" in text and _has_surrogates(event.value)):
            self.add_problem(event, loc, f"{event.value!r} holds a character that is none (NUL or half a pair)")
            return None
        return text

    def check_tag(self, event: Event, loc: Loc, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            self.add_problem(event, loc, f"cannot have the tag {_shorthand(event.tag)}: leave the tag out")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _shorthand(tag: str) -> str:
    return tag.replace(_TAG, "!!") if tag.startswith(_TAG) else tag


def _syntax(error: MarkedYAMLError) -> tuple[int | None, str, str]:
    """Line, path and message of a syntax error; the line where it begins, if the parser reports a later one."""
    problem = " ".join((error.problem or error.context or "it cannot be read").split())
    late = "<stream end>" in problem or "end of stream" in problem or "expected ':'" in problem
    mark = (error.context_mark if late else None) or error.problem_mark
    context = " ".join((error.context or "").split())
    if "'\\t'" in problem:
        problem = "a tab cannot indent: use spaces"
    elif "mapping values" in problem:
        problem = "a ':' that begins no value here: check the indentation, or put the text in quotes"
    elif late and context:
        problem = f"{context}, {problem}"
    elif "<block end>" in problem:
        problem = "what stands here does not belong to the lines above: check the indentation"
    elif error.context_mark is not None and error.context_mark.line != getattr(mark, "line", None):
        problem = f"{context} that begins in line {error.context_mark.line + 1}, {problem}"
    return (None if mark is None else mark.line + 1), "", f"is not YAML: {problem}"
