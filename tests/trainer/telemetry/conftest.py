"""Runs through the command line, with a reward that calls a function of the test."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from tailorpo_trainer import cli
from tailorpo_trainer.rewards import registry, weighted_sum

Make = Callable[..., dict[str, Any]]
Start = Callable[..., int]


class Probe:
    """A reward that calls a function with the number of its call; what that returns is multiplied with its scores."""

    name, unit, differentiable = "probe", "share of white", False

    def __init__(self, on_call: Callable[[int], float | None]) -> None:
        self.on_call, self.calls = on_call, 0

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        self.calls += 1
        factor = self.on_call(self.calls)
        return images.mean((1, 2, 3)) * (1.0 if factor is None else factor)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], None]:
    """Installs the function as the plug-in reward `probe`."""

    def install(on_call: Callable[[int], Any]) -> None:
        plugin = SimpleNamespace(name="probe", value="test", load=lambda: lambda *_: Probe(on_call))
        monkeypatch.setattr(weighted_sum, "find", lambda name: plugin if name == "probe" else registry.find(name))

    return install


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's termination messages go."""
    path = tmp_path / "termination-log"
    monkeypatch.setenv("TAILORPO_TERMINATION_LOG", str(path))
    return path


@pytest.fixture
def start(document: Make, tmp_path: Path, log: Path) -> Start:
    """`tailorpo run` of three iterations into `tmp_path/run`, without evaluation; `parts` replace those of the spec."""

    def run(*options: str, **parts: Any) -> int:
        values = document(**{"rewards": [{"name": "probe"}], "evaluation": {"everyIterations": 0}} | parts)
        values["metadata"]["namespace"] = "research"
        (tmp_path / "job.json").write_text(json.dumps(values))
        output = str(tmp_path / "run")
        return cli.main(["run", str(tmp_path / "job.json"), "--output", output, "--quiet", *options])

    return run
