"""What a rule that spans several fields has to say."""

from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Finding:
    """A broken rule: the field it is about, the fields it was judged from, and the sentence for the user."""

    path: Path
    reads: tuple[Path, ...]
    message: str
