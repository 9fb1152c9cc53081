"""Which attempt writes to an output folder: of two runs in one folder, the one that began later.

The folder names its owner in a hidden file. A writer opens a file first and asks then, so that what it appends after a
later owner has come lands in a file that this one has replaced already.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorpo_trainer import files
from tailorpo_trainer.untrusted import CONFIG_BYTES, read_json

NAME = ".owner.json"


@dataclass(frozen=True)
class Owner:
    """An attempt of the run whose checkpoints are at `storage`. token: tells two claims of one number apart."""

    storage: str
    attempt: int
    token: str

    @classmethod
    def new(cls, storage: str, attempt: int) -> "Owner":
        return cls(storage, attempt, secrets.token_hex(16))

    def take(self, folder: Path) -> None:
        """Name this attempt as the owner of a folder."""
        files.replace(folder / NAME, json.dumps(vars(self)) + "\n")

    def successor(self, folder: Path) -> str | None:
        """Who owns the folder instead, as a noun; None if this attempt does, or if nobody else says so.

        An earlier attempt of the same storage, which was slower to begin, is no successor: the folder is taken again.
        """
        found = _read(folder / NAME)
        if found is None or found.get("token") == self.token:
            return None
        storage, attempt = found.get("storage"), found.get("attempt")
        if storage != self.storage:
            return f"another run, whose checkpoints are at {storage}"
        if isinstance(attempt, int) and attempt < self.attempt:
            self.take(folder)
            return None
        return f"attempt {attempt}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, CONFIG_BYTES)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
