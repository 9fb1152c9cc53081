"""Modules that only read documents must start fast, so they import none of the large libraries."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

HEAVY = "diffusers kopf kubernetes mlflow numpy prometheus_client tensorboard torch transformers wandb".split()

LIGHT = [
    "tailorpo_operator",
    "tailorpo_operator.api.types",
    "tailorpo_operator.children.indexed_job",
    "tailorpo_operator.cli",
    "tailorpo_operator.api.crd",
    "tailorpo_trainer.checkpoint.inspection",
    "tailorpo_trainer.cli",
    "tailorpo_trainer.document",
    "tailorpo_trainer.errors",
    "tailorpo_trainer.training.launch",
    "tailorpo_trainer.results.locations",
    "tailorpo_trainer.prompts",
    "tailorpo_trainer.spec.job",
    "tailorpo_trainer.telemetry.termination",
    "tailorpo_trainer.telemetry.exporters",
]


def heavy_after(statement: str, heavy: Sequence[str] = HEAVY) -> list[str]:
    """The large libraries that a new interpreter has imported after the statement."""
    # The statement may print; the result is the last line.
    program = f"import json, sys\ntry:\n    {statement}\nfinally:\n    print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [name for name in heavy if name in json.loads(done.stdout.splitlines()[-1])]


def test_the_probe_sees_a_library() -> None:
    assert heavy_after("import numpy") == ["numpy"]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_is_light(module: str) -> None:
    assert heavy_after(f"import {module}") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_line_is_light(arguments: list[str]) -> None:
    statement = f"sys.argv[1:] = {arguments}; from tailorpo_trainer.cli import main; main()"
    # Help needs no document, so it does not import the parser either.
    assert heavy_after(statement, [*HEAVY, "pydantic", "ruamel.yaml"]) == []
