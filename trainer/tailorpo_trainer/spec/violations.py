"""Violations of rules that span several fields, and helpers for their messages."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Violation:
    """A broken rule: the field it concerns, the other fields that it read, and the message for the user.

    exclusive: whether too many of the fields in `path` are given.
    """

    path: Path
    reads: tuple[Path, ...]
    message: str
    exclusive: bool = False


def alias(model_or_instance: BaseModel | type[BaseModel], field: str) -> str:
    """The YAML name of a field."""
    model = model_or_instance if isinstance(model_or_instance, type) else type(model_or_instance)
    return model.model_fields[field].alias or field


def or_list(names: Sequence[str]) -> str:
    """`'a' or 'b'`."""
    return " or ".join(map(repr, names))


def and_list(names: Sequence[str]) -> str:
    """`'a' and 'b'`."""
    return " and ".join(map(repr, names))
