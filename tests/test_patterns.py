"""Untrusted text costs time in proportion to its length, in every pattern and in the functions that read such texts.

The event loop that renews the operator's Lease also reads text from pods. A pattern that needs time quadratic in the
length would stop the operator for all jobs. The tests measure the growth of this process' CPU time, which depends
neither on the speed of the machine nor on its load.
"""

import ast
import gc
import importlib
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tailorpo_operator.planning import causes
from tailorpo_trainer.distributed.torch_errors import first_sentence
from tailorpo_trainer.document.messages import nearest
from tailorpo_trainer.document.source import resolve
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.report.sections import reproduce
from tailorpo_trainer.spec.progress import Progress, line, redact
from tailorpo_trainer.telemetry import termination
from tests.operator.stories import exited

ROOT = Path(__file__).parents[1]
SOURCES = {
    f"{path.relative_to(ROOT / package).with_suffix('')}".replace("/", "."): path.read_text()
    for package in ("operator", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
}

OURS = {"tailorpo_operator.api.cel"}
"""Modules whose patterns read only texts of this repository."""

LENGTH = 4096
FACTOR = 8
AT_MOST = 20
"""Largest ratio of the times for a text that is `FACTOR` times as long: 8 if time is linear, 64 if it is quadratic.

The limit is far from both, so that neither caches nor other processes on the machine decide.
"""
FLOOR = 0.001
"""Seconds below which nothing can be measured. Quadratic time for the long text is some hundred times as long."""
TRIES = 7
USES = "match|fullmatch|search|findall|finditer|split|sub"

UNITS = [
    *"aA1 \n\t_-./:=@?#&'\"\\[({é\x1b\0",
    *("a1", "a=", "a.", "a ", "- ", "1_", "://", "a://", "a://b@", "a://b?", "PASS", "_KEY", "PASS=", 'PASS="', "\\a"),
    *("'a", "-----BEGIN ", "attempt-0001/step-", "(os error ", "model.", "0000", "1e", "…"),
]
BEGINNINGS, ENDS = ("", "a://", 'a="'), ("", "!")
SHAPES = [(begin, unit, end) for begin in BEGINNINGS for unit in UNITS for end in ENDS]


class Pattern(NamedTuple):
    """A pattern, and how it is used."""

    module: str
    where: str
    use: str
    compiled: re.Pattern[str]

    def read(self, text: str) -> None:
        if self.use == "sub":
            self.compiled.sub("", text)
        elif self.use == "finditer":
            deque(self.compiled.finditer(text), maxlen=0)
        else:
            getattr(self.compiled, self.use)(text)


def patterns() -> Iterator[Pattern]:
    """Every pattern of both packages, once for each kind of use."""
    everything = "\n".join(SOURCES.values())
    for module, source in SOURCES.items():
        tree = ast.parse(source)
        names = {node.value: ast.unparse(node.targets[0]) for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) != "re":
                continue
            if (use := node.func.attr) == "compile":
                compiled = re.compile(*(value(module, each) for each in node.args))
                uses = sorted(set(re.findall(rf"\b{names[node]}\.({USES})\b", everything)))
                assert uses, f"nobody uses {module}.{names[node]}"
                yield from (Pattern(module, names[node], use, compiled) for use in uses)
            else:
                yield Pattern(module, f"line {node.lineno}", use, re.compile(value(module, node.args[0])))


def value(module: str, node: ast.expr) -> Any:
    """The value of an argument, which is a constant or a name in the module."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return eval(ast.unparse(node), vars(importlib.import_module(module)))


FOREIGN = [pattern for pattern in patterns() if pattern.module not in OURS]

READERS: dict[str, Callable[[str], object]] = {
    "a text with secrets": redact,
    "a line of the status": lambda text: line(text, 512),
    "the last word of a process": lambda text: termination.encode(Progress().ended(ConfigurationError(text))),
    "a termination message": lambda text: causes.of_pod(exited(1, text=text)),
    "the report's document": reproduce.yaml,
    "a scalar of YAML": resolve,
    "an unknown name": lambda text: nearest(text, ["storage", "secretName"]),
    "an error of torch": lambda text: first_sentence(RuntimeError(text)),
}


def seconds(call: Callable[[str], object], text: str) -> float:
    """CPU seconds of this process, without garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        began = time.process_time()
        call(text)
        return time.process_time() - began
    finally:
        if enabled:
            gc.enable()


def growth(call: Callable[[str], object], shape: tuple[str, str, str], length: int = LENGTH) -> float:
    """Ratio of the times for a long text and for a short one; the best of several tries, because of load."""
    begin, unit, end = shape
    short, long = (begin + unit * (size // len(unit)) + end for size in (length, FACTOR * length))
    of_short = of_long = math.inf
    for _ in range(TRIES):
        of_short, of_long = min(of_short, seconds(call, short)), min(of_long, seconds(call, long))
        if of_long <= AT_MOST * max(of_short, FLOOR):
            break
    return of_long / max(of_short, FLOOR)


def slow(call: Callable[[str], object]) -> tuple[str, str, str] | None:
    """The first shape for which the time grows faster than the length."""
    return next((shape for shape in SHAPES if growth(call, shape) > AT_MOST), None)


@pytest.mark.parametrize("pattern", FOREIGN, ids=lambda pattern: f"{pattern.module}:{pattern.where}:{pattern.use}")
def test_no_pattern_takes_the_square_of_a_text(pattern: Pattern) -> None:
    assert slow(pattern.read) is None


@pytest.mark.parametrize("reader", READERS)
def test_nor_does_what_reads_whole_texts(reader: str) -> None:
    assert slow(READERS[reader]) is None


def test_one_that_does_is_found() -> None:
    assert growth(re.compile("a*b").search, ("", "a", ""), 4096) > AT_MOST


def test_patterns_are_found_wherever_they_are_made() -> None:
    assert {pattern.where for pattern in FOREIGN} >= {"_USER", "_QUERY", "_ASSIGNED", "_SECRET", "_STEP", "unusual"}
    assert {pattern.module for pattern in patterns()} > OURS
