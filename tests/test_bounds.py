"""The lowest versions that pyproject.toml allows work: installed into an environment of their own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOR_TESTS = ("pytest", "pytest-timeout", "hypothesis", "cryptography", "kubernetes-validate")
"""Packages of the group `dev` that the chosen tests import."""
OPERATOR = [
    *(f"tests/operator/{folder}" for folder in ("api", "planning", "children", "kube", "controller")),
    "--ignore=tests/operator/children/test_pod_commands.py",  # it trains
]
TRAINER = [f"tests/trainer/{folder}" for folder in ("spec", "diffusion", "methods", "models", "training")]


def uv() -> str:
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailorpo" / "uv"
    return str(kept) if kept.exists() else "uv"


@pytest.mark.parametrize(
    ("extra", "tests"),
    [
        pytest.param("operator", OPERATOR, id="operator", marks=pytest.mark.timeout(900)),
        pytest.param("trainer", TRAINER, id="trainer", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_the_lowest_versions_work(extra: str, tests: list[str], tmp_path: Path) -> None:
    """`trainer` downloads gigabytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [each for each in project["dependency-groups"]["dev"] if each.partition(">=")[0] in FOR_TESTS]
    assert len(wanted) == len(FOR_TESTS)
    environment = os.environ | {"VIRTUAL_ENV": str(tmp_path / "environment"), "PYTHONPATH": str(ROOT)}
    for arguments in (
        ["venv", "--quiet", f"--python={sys.executable}", environment["VIRTUAL_ENV"]],
        ["pip", "install", "--quiet", "--resolution=lowest-direct", f"{ROOT}[{extra}]", *wanted],
    ):
        subprocess.run([uv(), *arguments], check=True, env=environment)
    python = Path(environment["VIRTUAL_ENV"]) / "bin" / "python"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
