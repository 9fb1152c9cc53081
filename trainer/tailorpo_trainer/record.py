"""Everything a run says about itself: `metrics.jsonl`, `progress.json`, pictures, alarms, the display."""

import math
import time
from collections import defaultdict, deque
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer import alarms
from tailorpo_trainer.display import Display
from tailorpo_trainer.evaluate import Measurement
from tailorpo_trainer.exits import NotFiniteError, TailorPOError
from tailorpo_trainer.outputs import Output, append_metrics, finite, rewrite_metrics, write_json
from tailorpo_trainer.scoring import Scorer
from tailorpo_trainer.timing import Phases
from tailorpo_trainer.updater import UpdateFacts


class Record:
    """Writes a run's figures where people and programs look for them.

    Attributes:
        step: iterations done.
        totals: work since the beginning, over all attempts: images, reward_queries, denoiser_forwards, … , seconds.
        checkpoint: the newest one, from which a resume would go on: uri, step, time.
        lines: of `metrics.jsonl`, without a number that is not finite.
    """

    def __init__(self, output: Output, display: Display, name: str, iterations: int) -> None:
        self.output, self.display, self.name, self.iterations = output, display, name, iterations
        self.phases = Phases()
        self.step = 0
        self.totals: dict[str, float] = {}
        self.checkpoint: dict[str, Any] | None = None
        self.attempt = 1
        self.lines: list[dict[str, Any]] = []
        self._kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._recent: deque[float] = deque(maxlen=20)
        self._raised: set[str] = set()
        self._since = time.perf_counter()

    def resume(self, iteration: int, totals: dict[str, float], checkpoint: dict[str, Any] | None = None) -> None:
        """Forget what was written after the checkpoint that training goes on from; at 0, everything."""
        self.step, self.totals, self.checkpoint = iteration, dict(totals), checkpoint
        self.lines = [line for line in self.output.read_metrics() if 0 < iteration >= line["iteration"]]
        self._kinds.clear()
        for line in self.lines:
            self._kinds[line["kind"]].append(line)
        self._raised = {line["name"] for line in self._kinds["alarm"]}
        rewrite_metrics(self.output.metrics, self.lines)
        self.output.forget_samples(line["iteration"] for line in self._kinds["evaluation"])
        self.progress("Running")
        self._since = time.perf_counter()

    def evaluated(self, iteration: int) -> bool:
        """Whether this iteration's evaluation is written already."""
        return any(line["iteration"] == iteration for line in self._kinds["evaluation"])

    def evaluated_reward(self, iteration: int) -> float | None:
        """The weighted held-out reward that was measured at this iteration; None if none was."""
        found = [line["reward"] for line in self._kinds["evaluation"] if line["iteration"] == iteration]
        return found[-1] if found else None

    def iteration(self, iteration: int, scorer: Scorer, facts: UpdateFacts, work: dict[str, float]) -> None:
        """One iteration is done. work: what it added to `totals`."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.step = iteration
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
            "images_per_second": work["images"] * len(self._recent) / sum(self._recent),
            "eta_seconds": self._eta(),
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
        self.display.iteration(self._write(line))
        for alarm in alarms.from_iterations(self._kinds["iteration"][-alarms.ITERATIONS :]):
            self._alarm(iteration, alarm)
        self.progress("Running")

    def evaluation(self, iteration: int, measured: Measurement, watched: tuple[str, ...], seconds: float) -> None:
        """One evaluation is done; its pictures are kept."""
        line = {
            "kind": "evaluation",
            "iteration": iteration,
            "images": len(measured.reward),
            "reward": float(measured.reward.double().mean()),
            "reward_standard_error": _standard_error(measured.reward),
            "rewards": {name: float(part.double().mean()) for name, part in measured.parts.items()},
            "rewards_standard_error": {name: _standard_error(part) for name, part in measured.parts.items()},
            "watched": list(watched),
            "diversity": measured.diversity,
            "diversity_standard_error": measured.diversity_error,
            "scores": _short(measured.reward),
            "watched_scores": {name: _short(measured.parts[name]) for name in watched},
            "prompts": measured.prompts[: len(measured.pictures)],
            "seconds": round(seconds, 3),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
        }
        self._pictures(iteration, measured.pictures)
        self.display.evaluation(self._write(line))
        for alarm in alarms.from_evaluations(self._kinds["evaluation"]):
            self._alarm(iteration, alarm)
        self._since = time.perf_counter()  # evaluation is not training time
        self.progress("Running")

    def saved(self, iteration: int, uri: str) -> None:
        """A checkpoint is complete."""
        self.checkpoint = {"uri": uri, "step": iteration, "time": _now()}
        self.progress("Running")

    def failed(self, iteration: int, error: TailorPOError) -> None:
        """The run ends in this iteration: an alarm, if a number that is not finite is the cause, and the last word."""
        if isinstance(error, NotFiniteError):
            self._alarm(iteration, alarms.Alarm("not-finite", str(error)))
        self.progress("Failed", str(error))

    def progress(self, phase: str, message: str | None = None) -> None:
        """Replace `progress.json`."""
        last: dict[str, Any] = next(reversed(self._kinds["iteration"]), {})
        measured: dict[str, Any] = next(reversed(self._kinds["evaluation"]), {})
        write_json(
            self.output.progress,
            {
                "name": self.name,
                "phase": phase,
                "step": self.step,
                "of": self.iterations,
                "percent": round(100 * self.step / self.iterations, 2),
                "eta_seconds": self._eta() if phase == "Running" else None,
                "rates": {"images_per_second": last.get("images_per_second")},
                "metrics": {
                    "reward": last.get("reward"),
                    "evaluation": measured.get("reward"),
                    "gap": last.get("gap"),
                    "loss": last.get("loss"),
                },
                "checkpoint": self.checkpoint,
                "attempt": self.attempt,
                "message": message,
                "updated": _now(),
            },
        )

    def _eta(self) -> float | None:
        """Seconds to the end at the pace of the last iterations, with the evaluations that are still to come."""
        if not self._recent:
            return None
        seconds = sum(self._recent) / len(self._recent) * (self.iterations - self.step)
        evaluations = self._kinds["evaluation"][-2:]
        if len(evaluations) == 2:
            one, other = (line["iteration"] for line in evaluations)
            ahead = math.ceil((self.iterations - other) / max(1, other - one))
            seconds += ahead * (evaluations[-1].get("seconds") or 0.0)
        return round(seconds, 1)

    def _alarm(self, iteration: int, alarm: alarms.Alarm) -> None:
        if alarm.name not in self._raised:  # once a run: a log full of one alarm hides the next
            self._raised.add(alarm.name)
            line = {"kind": "alarm", "iteration": iteration, "name": alarm.name, "message": alarm.message}
            self.display.alarm(self._write(line))

    def _write(self, line: dict[str, Any]) -> dict[str, Any]:
        """The line as it is written."""
        whole: dict[str, Any] = finite(line)
        self.lines.append(whole)
        self._kinds[whole["kind"]].append(whole)
        append_metrics(self.output.metrics, whole)
        return whole

    def _pictures(self, iteration: int, pictures: Tensor) -> None:
        from PIL import Image

        folder = self.output.sample(iteration, 0).parent
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        values = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, picture in enumerate(values):
            Image.fromarray(picture).save(self.output.sample(iteration, number))


def _by_step(values: Tensor, step: Tensor) -> dict[str, float]:
    return {str(index): float(values[step == index].mean()) for index in step.unique().tolist()}


def _standard_error(values: Tensor) -> float | None:
    """Of the mean; None for one value, which says nothing about it."""
    return float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None


def _short(values: Tensor) -> list[float]:
    """With six digits that count."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
