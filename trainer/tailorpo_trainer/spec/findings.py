"""What a rule that spans several fields has to say, and the words for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Finding:
    """A broken rule: the field it is about, the fields it was judged from, and the sentence for the user."""

    path: Path
    reads: tuple[Path, ...]
    message: str


def alias(part: BaseModel | type[BaseModel], field: str) -> str:
    """The YAML name of a field."""
    model = part if isinstance(part, type) else type(part)
    return model.model_fields[field].alias or field


def either(names: Sequence[str]) -> str:
    """`'a' or 'b'`."""
    return " or ".join(map(repr, names))


def both(names: Sequence[str]) -> str:
    """`'a' and 'b'`."""
    return " and ".join(map(repr, names))
