"""Run as a program: train on a storage, get killed, again and again. Not a test itself.

    victim.py STORAGE ACKNOWLEDGED LINES...

For each number a child resumes, saves and prunes, and sends itself SIGKILL before that many lines of the
checkpoint package have run. Every step is noted in ACKNOWLEDGED once it is committed. Prints, for each child,
the signal that ended it and what a resume would find: attempt and step, or null.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tailorpo_trainer import checkpoint, document
from tailorpo_trainer.checkpoint import tensors  # noqa: F401  (once, before the forks)

PACKAGE = str(Path(checkpoint.__file__).parent)
JOB = document.parse(
    {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "victim"},
        "spec": {"prompts": {"builtin": "animals"}, "rewards": [{"name": "r"}], "method": {"name": "tailorpo"}},
    },
    overrides=["spec.training.iterations=1000000"],
)


def train(storage: str, acknowledged: str, steps: int) -> None:
    run = checkpoint.open_run(checkpoint.open_store(storage), JOB)
    start = run.latest()
    attempt = run.begin(start)
    first = 1 if start is None else start.step + 1
    for step in range(first, first + steps):
        attempt.save(step, {"adapter": {"up": torch.full((5,), step)}, "ema": {}}, {"step": step})
        Path(acknowledged).write_text(str(step))
        attempt.prune(2)


def kill_after(lines: int) -> None:
    left = lines

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_line

    sys.settrace(on_line)


def main(storage: str, acknowledged: str, *numbers: str) -> None:
    torch.set_num_threads(1)
    for lines in map(int, numbers):
        child = os.fork()
        if not child:
            kill_after(lines)
            train(storage, acknowledged, 1_000_000)
        _, status = os.waitpid(child, 0)
        found = checkpoint.latest(checkpoint.open_store(storage))
        if found is not None:
            assert found.state == {"step": found.step}
            assert found.tensors("adapter")["up"].tolist() == [found.step] * 5
        print(json.dumps([os.WTERMSIG(status), found and [found.attempt, found.step]]), flush=True)
    train(storage, acknowledged, 3)


if __name__ == "__main__":
    main(*sys.argv[1:])
