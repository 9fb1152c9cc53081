"""Whether the memory of a long run is constant: `python -m benchmarks.training.memory`.

500 iterations with a checkpoint every 10 and an evaluation every 50; the resident memory is read after every iteration.
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

GOAL = 0.02
WINDOW = 50  # iterations whose median is compared, since memory fluctuates


def job(iterations: int) -> dict[str, Any]:
    """TailorPO with few steps and samples: a leak would be in the bookkeeping, which is the same for every size."""
    return tiny_animals(
        "memory",
        sampling={"steps": 4, "trainedSteps": {"count": 2}, "guidanceScale": 3.0},
        training={"iterations": iterations, "promptsPerIteration": 2},
        evaluation={"everyIterations": 50, "images": 8},
        checkpoint={"everyIterations": 10},
    )


def megabytes(process: int) -> float:
    """Resident memory of a process, in MB (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(iterations: int) -> list[float]:
    """Resident memory after each iteration, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job(iterations)))
        command = [sys.executable, "-m", "tailorpo_trainer", str(path), "--output", f"{folder}/run", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            kinds = (json.loads(line)["kind"] for line in running.stdout)
            found = [megabytes(running.pid) for kind in kinds if kind == "iteration"]
        if running.returncode:
            raise SystemExit(f"the run ended with exit code {running.returncode}")
        return found


def markdown(found: Sequence[float]) -> str:
    early, late = found[WINDOW : 2 * WINDOW], found[-WINDOW:]
    before, after = statistics.median(early), statistics.median(late)
    return (
        "## Memory of a long run\n\n"
        f"`tiny-animals`, {len(found)} iterations of 2 samples, a checkpoint every 10, an evaluation every 50; one "
        f"thread. Resident memory, median of iterations {WINDOW}–{2 * WINDOW}: {before:.0f} MB; of the last {WINDOW}: "
        f"{after:.0f} MB; change {100 * (after / before - 1):+.1f} % (goal: within {100 * GOAL:.0f} %).\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.memory", description=__doc__)
    parser.add_argument("--iterations", type=int, default=500)
    given = parser.parse_args()
    if given.iterations < 3 * WINDOW:
        parser.error(f"--iterations: at least {3 * WINDOW}, or there is nothing to compare")
    print(markdown(measure(given.iterations)))
