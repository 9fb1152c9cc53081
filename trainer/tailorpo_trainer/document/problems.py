"""Errors in a document and their locations."""

from collections.abc import Sequence
from dataclasses import dataclass

from tailorpo_trainer.errors import ConfigurationError

Loc = tuple[str | int, ...]
"""The location of a value: the keys and list indices that lead to it."""


@dataclass(frozen=True)
class Problem:
    """One error in a document: where it is, and what would be right."""

    source: str
    line: int | None
    path: str
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class DocumentError(ConfigurationError):
    """All problems of one file, one per line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def path_text(loc: Loc) -> str:
    """`spec.rewards[0].name`, the form that `--set` accepts."""
    return "".join(
        f"[{key}]" if isinstance(key, int) else f".{printable(key).replace('.', chr(92) + '.')}" for key in loc
    ).lstrip(".")


def printable(text: str) -> str:
    """The text in one line, for a message: a key or a file name may contain any character."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def overlap(one: Loc, other: Loc) -> bool:
    """Whether one path is a prefix of the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
