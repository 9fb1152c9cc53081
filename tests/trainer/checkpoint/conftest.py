"""A job, a run in a folder, and a store in memory that can fail on request."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import document
from tailorpo_trainer.checkpoint import ExistsError, MissingError, Run, open_run, open_store
from tailorpo_trainer.checkpoint.format import RECORD_BYTES, OversizedError
from tailorpo_trainer.spec.job import TailorPOJob


def a_job(*overrides: str) -> TailorPOJob:
    data: dict[str, Any] = {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "vivid-animals"},
        "spec": {
            "prompts": {"builtin": "animals"},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo", "beta": 0.1},
        },
    }
    return document.parse(data, overrides=overrides)


class CrashError(Exception):
    """Stands for a SIGKILL between two changes of the store."""


class MemoryStore:
    """As little as S3 promises: flat names, and no order within one delete."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.changes_left: int | None = None
        self.before: Callable[[str, str], None] = lambda method, name: None

    def _change(self) -> None:
        if self.changes_left is not None:
            if not self.changes_left:
                raise CrashError
            self.changes_left -= 1

    def write(self, name: str, data: bytes | memoryview, *, if_absent: bool = False) -> None:
        self.before("write", name)
        self._change()
        if if_absent and self.objects.get(name, data) != data:
            raise ExistsError(name)
        self.objects[name] = bytes(data)

    def read(self, name: str, most: int = RECORD_BYTES) -> bytes:
        self.before("read", name)
        if name not in self.objects:
            raise MissingError(name)
        if (size := len(self.objects[name])) > most:
            raise OversizedError(self.uri(name), size, most)
        return self.objects[name]

    def size(self, name: str) -> int:
        return len(self.read(name, sys.maxsize))

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))

    def folders(self, prefix: str) -> list[str]:
        return sorted({name.split("/")[0] for name in self.objects if name.startswith(prefix) and "/" in name})

    def delete(self, names: Iterable[str]) -> None:
        for name in sorted(names, reverse=True):
            self._change()
            self.objects.pop(name, None)

    def delete_unfinished(self, prefix: str) -> None:
        pass

    def uri(self, name: str) -> str:
        return f"memory:{name}"


@pytest.fixture
def job() -> Callable[..., TailorPOJob]:
    return a_job


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def crash() -> type[Exception]:
    return CrashError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(open_store(tmp_path / "storage"), a_job())
