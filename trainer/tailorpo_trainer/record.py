"""Everything a run says about itself: `metrics.jsonl`, `progress.json`, pictures, alarms, the display."""

import json
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer import alarms
from tailorpo_trainer.display import Display
from tailorpo_trainer.evaluate import Measurement
from tailorpo_trainer.outputs import Output, rewrite_metrics, write_json
from tailorpo_trainer.scoring import Scorer
from tailorpo_trainer.timing import Phases
from tailorpo_trainer.updater import UpdateFacts


class Record:
    """Writes a run's figures where people and programs look for them.

    Attributes:
        totals: work since the beginning, over all attempts: images, reward_queries, denoiser_forwards, … , seconds.
    """

    def __init__(self, output: Output, display: Display, name: str, iterations: int) -> None:
        self.output, self.display, self.name, self.iterations = output, display, name, iterations
        self.phases = Phases()
        self.totals: dict[str, float] = {}
        self.checkpoint: dict[str, Any] | None = None
        self.attempt = 1
        self.lines: list[dict[str, Any]] = []
        self._recent: deque[float] = deque(maxlen=20)
        self._raised: set[str] = set()
        self._since = time.perf_counter()

    def resume(self, iteration: int, totals: dict[str, float]) -> None:
        """Forget what was written after the checkpoint that training goes on from."""
        self.totals = dict(totals)
        self.lines = [line for line in self.output.read_metrics() if line.get("iteration", 0) <= iteration and iteration]
        self._raised = {line["name"] for line in self.lines if line["kind"] == "alarm"}
        rewrite_metrics(self.output.metrics, self.lines)

    def evaluated(self, iteration: int) -> bool:
        """Whether this iteration's evaluation is written already."""
        return any(line["kind"] == "evaluation" and line["iteration"] == iteration for line in self.lines)

    def iteration(self, iteration: int, scorer: Scorer, facts: UpdateFacts, work: dict[str, float]) -> None:
        """One iteration is done. work: what it added to `totals`."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._recent.append(seconds)
        for key, value in {**work, "seconds": seconds}.items():
            self.totals[key] = self.totals.get(key, 0) + value
        logit = facts.facts["logit"]
        line: dict[str, Any] = {
            "kind": "iteration",
            "iteration": iteration,
            "loss": facts.loss,
            "reward": scorer.mean(),
            "reward_std": scorer.std(),
            "rewards": {name: scorer.mean(name) for name in scorer.names},
            "logit": float(logit.mean()),
            "logit_abs": float(logit.abs().mean()),
            "clamped": float(facts.facts["clamped"].mean()) if "clamped" in facts.facts else None,
            "gradient_norm": facts.gradient_norm,
            "learning_rate": facts.learning_rate,
            "images_per_second": work["images"] / sum(self._recent) * len(self._recent),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
            "phase_seconds": {key: round(value, 5) for key, value in self.phases.seconds.items()},
        }
        if facts.gap is not None:
            live = facts.weight > 0
            line |= {
                "gap": float(facts.gap.mean()),
                "gap_by_step": _by_step(facts.gap, facts.step),
                "tied": float((~live).float().mean()),
                "implicit_accuracy": float((logit[live] > 0).float().mean()) if live.any() else None,
            }
        self.phases.seconds.clear()
        self._write(line)
        self.display.iteration(line)
        recent = [entry for entry in self.lines[-20:] if entry["kind"] == "iteration"]
        for alarm in alarms.from_iterations(recent):
            self._alarm(iteration, alarm)
        self.progress("Running")

    def evaluation(self, iteration: int, measured: Measurement, watched: tuple[str, ...], seconds: float) -> None:
        """One evaluation is done; its pictures are kept."""
        line = {
            "kind": "evaluation",
            "iteration": iteration,
            "images": len(measured.reward),
            "reward": float(measured.reward.mean()),
            "reward_standard_error": _standard_error(measured.reward),
            "rewards": {name: float(part.mean()) for name, part in measured.parts.items()},
            "rewards_standard_error": {name: _standard_error(part) for name, part in measured.parts.items()},
            "watched": list(watched),
            "diversity": measured.diversity,
            "scores": [round(value, 6) for value in measured.reward.tolist()],
            "prompts": measured.prompts[: len(measured.pictures)],
            "seconds": round(seconds, 3),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
        }
        self._pictures(iteration, measured.pictures)
        self._write(line)
        self.display.evaluation(line)
        for alarm in alarms.from_evaluations([entry for entry in self.lines if entry["kind"] == "evaluation"]):
            self._alarm(iteration, alarm)
        self._since = time.perf_counter()  # evaluation is not training time
        self.progress("Running")

    def saved(self, iteration: int, uri: str) -> None:
        """A checkpoint is complete."""
        self.checkpoint = {"uri": uri, "step": iteration, "time": _now()}
        self.progress("Running")

    def progress(self, phase: str, message: str | None = None) -> None:
        """Replace `progress.json`."""
        last: dict[str, Any] = next((line for line in reversed(self.lines) if line["kind"] == "iteration"), {})
        measured = next((line for line in reversed(self.lines) if line["kind"] == "evaluation"), None)
        step = max((line["iteration"] for line in self.lines), default=0)
        pace = sum(self._recent) / len(self._recent) if self._recent else None
        write_json(
            self.output.progress,
            {
                "name": self.name,
                "phase": phase,
                "step": step,
                "of": self.iterations,
                "percent": round(100 * step / self.iterations, 2),
                "eta_seconds": round(pace * (self.iterations - step), 1) if pace is not None else None,
                "rates": {"images_per_second": last.get("images_per_second")},
                "metrics": {
                    "reward": last.get("reward"),
                    "evaluation": measured["reward"] if measured else None,
                    "gap": last.get("gap"),
                    "loss": last.get("loss"),
                },
                "checkpoint": self.checkpoint,
                "attempt": self.attempt,
                "message": message,
                "updated": _now(),
            },
        )

    def _alarm(self, iteration: int, alarm: alarms.Alarm) -> None:
        if alarm.name not in self._raised:  # once a run: a log full of one alarm hides the next
            self._raised.add(alarm.name)
            line = {"kind": "alarm", "iteration": iteration, "name": alarm.name, "message": alarm.message}
            self._write(line)
            self.display.alarm(line)

    def _write(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.output.metrics.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def _pictures(self, iteration: int, pictures: Tensor) -> None:
        from PIL import Image

        self.output.sample(iteration, 0).parent.mkdir(parents=True, exist_ok=True)
        values = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, picture in enumerate(values):
            Image.fromarray(picture).save(self.output.sample(iteration, number))


def _by_step(values: Tensor, step: Tensor) -> dict[str, float]:
    return {str(index): float(values[step == index].mean()) for index in step.unique().tolist()}


def _standard_error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
