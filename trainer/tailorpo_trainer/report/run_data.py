"""A run's output folder as values. Missing, damaged and infinite values become None instead of an error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailorpo_trainer.errors import DataError
from tailorpo_trainer.results.run_folder import RESULT_BYTES, RunFolder
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.stats import Value
from tailorpo_trainer.untrusted import read_json


@dataclass(frozen=True)
class Evaluation:
    """One line of kind `evaluation`. scores: one for each picture, in the order of their noise."""

    iteration: int
    images: int
    reward: Value
    error: Value
    rewards: dict[str, Value]
    errors: dict[str, Value]
    watched: tuple[str, ...]
    diversity: Value
    diversity_error: Value
    feature_diversity: Value
    feature_diversity_error: Value
    scores: list[Value]
    prompts: list[str]
    seconds: Value
    totals: dict[str, Value]


@dataclass(frozen=True)
class Run:
    """One output folder.

    Attributes:
        iterations: lines of kind `iteration`, by iteration; alarms: of kind `alarm`.
        training_prompts, held_out: None where `prompts.json` cannot be read.
        cost: FLOPs of one row of work by kind, from `cost.json` if it exists.
        document: `job.yaml` as text.
    """

    output: RunFolder
    job: TailorPOJob
    document: str
    iterations: list[Mapping[str, Any]]
    evaluations: list[Evaluation]
    alarms: list[Mapping[str, Any]]
    progress: Mapping[str, Any]
    environment: Mapping[str, Any]
    cost: Mapping[str, float]
    training_prompts: list[str] | None
    held_out: list[str] | None
    cut_prompts: Mapping[str, Value] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.job.metadata.name

    @property
    def done(self) -> int:
        """Iterations that are recorded."""
        last = [int(self.iterations[-1]["iteration"])] if self.iterations else []
        return max([*last, *(evaluation.iteration for evaluation in self.evaluations)], default=0)

    @property
    def totals(self) -> dict[str, Value]:
        """Totals of the work up to the last iteration."""
        return numbers(self.iterations[-1].get("totals")) if self.iterations else {}

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; above 1, the run was resumed."""
        return int(value(self.progress.get("attempt")) or 1)


def read(folder: Path) -> Run:
    """The run in a folder. Raises `ConfigurationError` if it is none, `DataError` if its figures are unreadable."""
    output = RunFolder(folder)
    job = output.read_job()
    try:
        document = output.job.read_text(encoding="utf-8")
        found: list[Any] = output.read_metrics()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{output.metrics} cannot be read: it is no text that a run wrote") from None
    lines = [line for line in found if isinstance(line, dict) and _is_whole(line)]
    lines.sort(key=lambda line: int(line["iteration"]))  # stable: of two lines of one iteration the later wins
    iterations = {line["iteration"]: line for line in lines if line.get("kind") == "iteration"}
    evaluations = {line["iteration"]: _evaluation(line) for line in lines if line.get("kind") == "evaluation"}
    prompts = _json(output.prompts)
    return Run(
        output=output,
        job=job,
        document=document,
        iterations=list(iterations.values()),
        evaluations=list(evaluations.values()),
        alarms=[line for line in lines if line.get("kind") == "alarm"],
        progress=_json(output.progress),
        environment=_json(output.environment),
        cost={key: cost for key, cost in numbers(_json(folder / "cost.json")).items() if cost is not None},
        training_prompts=_texts(prompts.get("training")),
        held_out=_texts(prompts.get("evaluation")),
        cut_prompts=numbers(prompts.get("cut")),
    )


def value(entry: object) -> Value:
    """A finite number, or None."""
    if isinstance(entry, int | float) and not isinstance(entry, bool) and math.isfinite(entry):
        return float(entry)
    return None


def numbers(entry: object) -> dict[str, Value]:
    """A JSON object of numbers."""
    return {str(key): value(item) for key, item in entry.items()} if isinstance(entry, Mapping) else {}


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    scores = line.get("scores")
    return Evaluation(
        iteration=int(line["iteration"]),
        images=int(value(line.get("images")) or 0),
        reward=value(line.get("reward")),
        error=value(line.get("reward_standard_error")),
        rewards=numbers(line.get("rewards")),
        errors=numbers(line.get("rewards_standard_error")),
        watched=tuple(_texts(line.get("watched")) or ()),
        diversity=value(line.get("diversity")),
        diversity_error=value(line.get("diversity_standard_error")),
        feature_diversity=value(line.get("feature_diversity")),
        feature_diversity_error=value(line.get("feature_diversity_standard_error")),
        scores=[value(score) for score in scores] if isinstance(scores, list) else [],
        prompts=_texts(line.get("prompts")) or [],
        seconds=value(line.get("seconds")),
        totals=numbers(line.get("totals")),
    )


def _is_whole(line: Mapping[str, Any]) -> bool:
    return value(line.get("iteration")) is not None


def _texts(entry: object) -> list[str] | None:
    return [str(item) for item in entry] if isinstance(entry, list) else None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path, RESULT_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
