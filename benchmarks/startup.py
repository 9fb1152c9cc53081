"""The time of `tailorpo --help` against that of an empty Python program: the cost of the imports."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUILD = Path("build/benchmarks")
GOAL = 0.3
"""Seconds at most, as issue 3 asks."""

CALL = "import sys; sys.argv = ['tailorpo', '--help']; from tailorpo_trainer.cli import main; sys.exit(main())"


def run(repeats: int, quiet: bool = False) -> dict[str, Any]:
    """Seconds of both, interleaved; written to `build/benchmarks/startup.json`."""
    commands = {
        "tailorpo --help": [sys.executable, "-c", CALL],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            seconds[name].append(_seconds(command))
    found = {"repeats": repeats, "seconds": seconds, "goal": GOAL}
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "startup.json").write_text(json.dumps(found, indent=2) + "\n")
    if not quiet:
        for name, values in seconds.items():
            if values:
                print(f"{name}: {statistics.median(values):.3f} s ({min(values):.3f} .. {max(values):.3f})")
    return found


def _seconds(command: Sequence[str]) -> float:
    since = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def markdown(found: dict[str, Any]) -> str:
    """The section of `docs/benchmarks.md`."""
    text = [
        "## Start-up\n",
        f"| command | seconds, median of {found['repeats']} (least–greatest) |",
        "|---|--:|",
    ]
    for name, values in found["seconds"].items():
        text.append(f"| `{name}` | {statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f}) |")
    text.append(f"\nGoal: `tailorpo --help` within {GOAL} s.")
    return "\n".join(text)
