"""Two processes of one run against two runs of one process at the same time: `python -m benchmarks.training.ranks`.

Both do the same work on the same cores. The only difference is that the processes of one run wait for each other and
add their gradients.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.documents import tiny_animals

ITERATIONS = 8
SAMPLES = 8  # of one process
GOAL = 0.9


def job(samples: int) -> dict[str, Any]:
    """A run of `samples` samples an iteration."""
    return tiny_animals(
        "ranks",
        training={"iterations": ITERATIONS, "promptsPerIteration": samples},
        checkpoint={"everyIterations": ITERATIONS},
    )


def rate(folder: Path) -> float:
    """Images a second, without the first iteration, which warms up."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line["totals"] for line in lines if line["kind"] == "iteration")
    return float((last["images"] - first["images"]) / (last["seconds"] - first["seconds"]))


def run(work: Path, samples: int, names: Sequence[str], *options: str) -> float:
    """The sum of the images a second of simultaneous runs."""
    (work / "job.json").write_text(json.dumps(job(samples)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tailorpo_trainer", str(work / "job.json"), "--quiet", *options]
    begun = [subprocess.Popen([*command, "--output", str(work / name)], env=environment) for name in names]
    for process in begun:
        if process.wait():
            raise SystemExit(f"a run ended with exit code {process.returncode}")
    return sum(rate(work / name) for name in names)


def measure(repeats: int) -> list[tuple[float, float]]:
    """Pairs of images a second, of one run and of two; alternating, so that load of the machine affects both."""
    found = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            together = run(work, 2 * SAMPLES, ["together"], "--processes", "2")
            apart = run(work, SAMPLES, ["one", "other"])
            found.append((together, apart))
            print(f"{repeat + 1}/{repeats}: {together:.2f} together, {apart:.2f} apart", file=sys.stderr, flush=True)
    return found


def markdown(found: Sequence[tuple[float, float]]) -> str:
    ratios = sorted(together / apart for together, apart in found)
    rows = [
        ("two processes of one run", [together for together, _ in found]),
        ("two runs of one process, side by side", [apart for _, apart in found]),
    ]
    table = "\n".join(
        f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f}) |" for name, values in rows
    )
    return (
        f"## Two processes\n\nTailorPO on `tiny-animals`, {SAMPLES} samples an iteration and process, gloo, one thread "
        f"each; median of {len(found)} (least–greatest), the first of {ITERATIONS} iterations left out.\n\n"
        f"| | images/s |\n|---|--:|\n{table}\n\n"
        f"Together / apart: {statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}); goal: ≥ {GOAL}.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.ranks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    print(markdown(measure(parser.parse_args().repeats)))
