"""The names of a storage's objects, and what can be known from the names alone."""

import re
from collections.abc import Iterable
from typing import NamedTuple

RUN = "run.json"
MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"

OBJECT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
_OWNED = re.compile(r"^attempt-(\d{4,})/(?:step-(\d{8,})/)?[^/]+$")


class Ref(NamedTuple):
    """The attempt and step of a checkpoint. The newest attempt's newest step sorts last."""

    attempt: int
    step: int

    @property
    def prefix(self) -> str:
        return f"attempt-{self.attempt:04d}/step-{self.step:08d}/"

    @property
    def manifest(self) -> str:
        return self.prefix + MANIFEST


class Inventory(NamedTuple):
    """All attempts, and the names under each step's prefix: known without reading any object."""

    attempts: set[int]
    steps: dict[Ref, list[str]]

    def committed(self) -> list[Ref]:
        """Steps that have a manifest, oldest first."""
        return sorted(ref for ref, names in self.steps.items() if ref.manifest in names)


def inventory(names: Iterable[str]) -> Inventory:
    found = Inventory(set(), {})
    for name in names:
        if match := _OWNED.match(name):
            found.attempts.add(int(match[1]))
            if match[2] is not None:
                found.steps.setdefault(Ref(int(match[1]), int(match[2])), []).append(name)
    return found


def output_prefix(attempt: int) -> str:
    """The prefix of an attempt's results. They belong to no checkpoint and are never pruned."""
    return f"attempt-{attempt:04d}/output/"


def attempt_number(folder: str) -> int | None:
    """The number of the attempt whose folder has this name."""
    match = _OWNED.match(f"{folder}/x")
    return int(match[1]) if match else None


def attempt_name(number: int) -> str:
    return f"attempt-{number:04d}/attempt.json"
