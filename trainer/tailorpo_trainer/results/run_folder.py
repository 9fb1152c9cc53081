"""The folder of a run: the name and format of every file in one place.

job.yaml  prompts.json  environment.json      what was run, and where
cost.json                                     FLOPs of one row of each kind of work
metrics.jsonl  progress.json                  what happened (`docs/progress.md`)
tensorboard/, mlflow.db, wandb/               the same for these trackers, where they were asked for
samples/iteration-000000/000.png …            pictures of each evaluation, on the same noise
adapter/                                      the result, as diffusers loads it
report.html                                   all of it, to look at
run.json  attempt-0001/step-00000010/ …       checkpoints, unless they are in S3 (`docs/checkpoints.md`)
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tailorpo_trainer import document, files
from tailorpo_trainer.errors import FULL, LOST, ConfigurationError, DataError, error_of_file
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.untrusted import parse_json, read_file, read_json

RESULT_BYTES = 1 << 30
"""Most bytes of a file of results; `metrics.jsonl` has about a kilobyte an iteration."""
SAMPLE = re.compile(r"^samples/iteration-\d{6,}/\d{3,}\.png$")


class RunFolder:
    """The folder of one run, and the paths in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job, self.prompts, self.environment = root / "job.yaml", root / "prompts.json", root / "environment.json"
        self.cost = root / "cost.json"
        self.metrics, self.progress = root / "metrics.jsonl", root / "progress.json"
        self.samples, self.adapter, self.report = root / "samples", root / "adapter", root / "report.html"

    def create(self) -> None:
        """Create the folder. Raises `ConfigurationError` if that is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (*FULL, *LOST):
                raise error_of_file(error, self.root) from None
            raise ConfigurationError(f"--output {self.root}: cannot be created: {error.strerror}") from None

    def read_job(self) -> TailorPOJob:
        """The resolved document. Raises `ConfigurationError` if this is not the folder of a run."""
        if not self.job.is_file():
            raise ConfigurationError(f"{self.root} is no output folder of a run: it has no job.yaml")
        return document.read(self.job)

    def read_prompts(self) -> tuple[list[str], list[str]]:
        """Training and evaluation prompts of the run, at least one of each. Raises `DataError` without them."""
        try:
            values = read_json(self.prompts, RESULT_BYTES)
            sets = [[str(prompt) for prompt in values[key]] for key in ("training", "evaluation")]
        except (OSError, ValueError, KeyError, TypeError):
            sets = []
        if not sets or not all(sets):
            raise DataError(f"{self.prompts} is missing or damaged: run the job again to write it")
        return sets[0], sets[1]

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of `metrics.jsonl`; a killed process may have left half a line, which is ignored.

        Raises `DataError` for what is no such file, otherwise as `files.replace`.
        """
        if not self.metrics.exists():
            return []
        try:
            return parse_metrics(read_file(self.metrics, RESULT_BYTES).decode("utf-8", errors="replace"))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EISDIR, errno.EFBIG):  # not what a run writes there
                raise DataError(f"{self.metrics}: cannot be read: {error.strerror}") from None
            raise error_of_file(error, self.metrics) from None

    def sample(self, iteration: int, number: int) -> Path:
        """The path of picture `number` of the evaluation at this iteration."""
        return self.samples / f"iteration-{iteration:06d}" / f"{number:03d}.png"

    @staticmethod
    def is_sample(name: str) -> bool:
        """Whether a path relative to the folder is that of an evaluation's picture."""
        return SAMPLE.match(name) is not None

    @staticmethod
    def iteration_of(sample: Path) -> int:
        """The iteration of the evaluation that a picture belongs to."""
        return int(sample.parent.name.removeprefix("iteration-"))

    def delete_samples(self, keep: Iterable[int]) -> None:
        """Delete the pictures of all evaluations but those at the iterations `keep`."""
        kept = {self.sample(iteration, 0).parent for iteration in keep}
        for folder in self.samples.glob("iteration-*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def parse_metrics(text: str) -> list[dict[str, Any]]:
    """The complete lines of a `metrics.jsonl`, each with `kind` and `iteration`."""
    lines = []
    for line_text in text.splitlines():
        try:
            line = parse_json(line_text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("kind"), str) and isinstance(line.get("iteration"), int):
            lines.append(line)
    return lines


def finite(values: Any) -> Any:
    """The same values with None for each number that is not finite: JSON has no NaN."""
    match values:
        case float():
            return values if math.isfinite(values) else None
        case Mapping():
            return {key: finite(value) for key, value in values.items()}
        case list() | tuple():
            return [finite(value) for value in values]
    return values


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Replace a JSON file atomically: a reader gets either the old or the new content. Raises as `files.replace`."""
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    files.replace(path, text + "\n")


def overwrite(path: Path, data: bytes) -> None:
    """Replace a file's content in place, for a file that is mounted, or a disk that has no room for a second file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def append_metrics(path: Path, line: Mapping[str, Any], may: Callable[[], bool] = lambda: True) -> None:
    """Append a line to `metrics.jsonl`, if `may` allows it with the file open; it must be `finite` already."""
    files.append(path, json.dumps(line, allow_nan=False) + "\n", may)


def rewrite_metrics(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace `metrics.jsonl` by these lines."""
    files.replace(path, "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines))
