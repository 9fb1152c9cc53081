"""Everything a run says about itself: `metrics.jsonl`, `progress.json`, pictures, alarms."""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.errors import ExitCode, TailorPOError
from tailorpo_trainer.evaluation.measurement import Measurement
from tailorpo_trainer.results.run_folder import Output, append_metrics, finite, rewrite_metrics
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.spec.progress import Checkpoint, Metrics, Progress, Rates, redact
from tailorpo_trainer.telemetry import alarms, termination
from tailorpo_trainer.telemetry.observer import Observer, RunStart
from tailorpo_trainer.telemetry.timing import Phases
from tailorpo_trainer.training.updater import UpdateFacts
from tailorpo_trainer.versions import now


class Recorder:
    """Writes a run's figures where people and programs look for them, and tells the observers.

    Attributes:
        totals: work since the beginning, over all attempts: images, reward_queries, denoiser_forwards, … , seconds.
        speaks: whether it writes; of several processes one speaks for the run.
        lines: of `metrics.jsonl`, without a number that is not finite.
        observers: told of each of them.
    """

    def __init__(self, output: Output, progress: Progress, speaks: bool = True) -> None:
        assert progress.of is not None
        self.output, self.iterations, self.speaks = output, progress.of, speaks
        self.observers: Sequence[Observer] = ()
        self.phases = Phases()
        self.totals: dict[str, float] = {}
        self.lines: list[dict[str, Any]] = []
        self._kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._recent: deque[float] = deque(maxlen=20)
        self._raised: set[str] = set()
        self._since = time.perf_counter()
        self._lock = threading.RLock()  # checkpoints may complete on another thread
        termination.begin(progress, output.progress if speaks else None)

    def resume(
        self, attempt: int, iteration: int, totals: Mapping[str, float], checkpoint: Checkpoint | None = None
    ) -> None:
        """Forget what was written after the checkpoint that training goes on from; at 0, everything."""
        self.totals = dict(totals)
        written = self.output.read_metrics() if self.speaks else []
        self.lines = [line for line in written if 0 < iteration >= line["iteration"]]
        self._kinds.clear()
        for line in self.lines:
            self._kinds[line["kind"]].append(line)
        self._raised = {line["name"] for line in self._kinds["alarm"]}
        if self.speaks:
            rewrite_metrics(self.output.metrics, self.lines)
            self.output.forget_samples(line["iteration"] for line in self._kinds["evaluation"])
        for observer in self.observers:
            observer.begin(RunStart(attempt, iteration, self.totals, self.lines))
        known = checkpoint if self.speaks else None  # others never hear of newer ones, and would tell of an old one
        self._know(phase="Running", attempt=attempt, step=iteration, resumed_from=checkpoint, checkpoint=known)
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
        before, self._since = self._since, time.perf_counter()
        seconds = self._since - before
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
            "eta_seconds": self._eta(iteration),
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
        if scorer.agreement.compared:
            line |= {"rank_agreement": scorer.agreement.share, "rank_agreement_pairs": scorer.agreement.compared}
        self.phases.seconds.clear()
        self._write(line)
        self._know(step=iteration)
        for alarm in alarms.from_iterations(self._kinds["iteration"][-alarms.ITERATIONS :]):
            self._alarm(iteration, alarm)
        if "rank_agreement" in line:
            for alarm in alarms.from_checks(self._kinds["iteration"]):
                self._alarm(iteration, alarm)

    def evaluation(self, iteration: int, measured: Measurement, watched: tuple[str, ...], seconds: float) -> None:
        """One evaluation is done; its pictures are kept."""
        line = {
            "kind": "evaluation",
            "iteration": iteration,
            "images": len(measured.reward),
            "reward": float(measured.reward.double().mean()),
            "reward_standard_error": _standard_error(measured.reward),
            "rewards": {name: float(part.double().mean()) for name, part in measured.term_scores.items()},
            "rewards_standard_error": {name: _standard_error(part) for name, part in measured.term_scores.items()},
            "watched": list(watched),
            "diversity": measured.diversity,
            "diversity_standard_error": measured.diversity_error,
            "feature_diversity": measured.feature_diversity,
            "feature_diversity_standard_error": measured.feature_diversity_error,
            "scores": _short(measured.reward),
            "watched_scores": {name: _short(measured.term_scores[name]) for name in watched},
            "prompts": measured.prompts[: len(measured.pictures)],
            "seconds": round(seconds, 3),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
        }
        self._pictures(iteration, measured.pictures)
        self._write(line)
        self._know()
        for alarm in alarms.from_evaluations(self._kinds["evaluation"]):
            self._alarm(iteration, alarm)
        self._since = time.perf_counter()  # evaluation is not training time

    def saved(self, step: int, uri: str, seconds: float, size: int) -> None:
        """A checkpoint of so many bytes is complete, and this long it took. From any thread."""
        self._know(checkpoint=Checkpoint(uri=uri, step=step, time=now()))  # first: the line may find the disk full
        self._write({"kind": "checkpoint", "iteration": step, "uri": uri, "seconds": round(seconds, 3), "bytes": size})

    def checkpoint_failed(self, step: int, error: BaseException) -> None:
        """A checkpoint could not be written this time. From any thread."""
        self._write({"kind": "checkpoint", "iteration": step, "error": redact(str(error))})

    def succeeded(self, adapter: str) -> None:
        """All iterations are done, and this is where the result is."""
        self._know(phase="Succeeded", adapter=adapter)

    def failed(self, error: TailorPOError, cause: int | None = None) -> None:
        """The run ends so: the last word, and an alarm if a number that is not finite is the cause.

        cause: exit code of another process, if it ended the run.
        """
        if ExitCode.NOT_FINITE in (error.exit_code, cause):
            self._alarm(termination.known().step + 1, alarms.Alarm("not-finite", str(error)))
        termination.last_word(error)

    def _know(self, **changes: Any) -> None:
        """Replace `progress.json`, the termination message and what is served."""
        with self._lock:
            before = termination.known()  # with its last word, if a checkpoint completes after that
            step = changes.get("step", before.step)
            running = changes.get("phase", before.phase) == "Running"
            last: dict[str, Any] = next(reversed(self._kinds["iteration"]), {})
            measured: dict[str, Any] = next(reversed(self._kinds["evaluation"]), {})
            progress = before.replace(
                percent=round(100 * step / self.iterations, 2),
                eta_seconds=self._eta(step) if running else None,
                rates=Rates(images_per_second=last.get("images_per_second")),
                metrics=Metrics(
                    reward=last.get("reward"),
                    evaluation=measured.get("reward"),
                    gap=last.get("gap"),
                    loss=last.get("loss"),
                ),
                **changes,
            )
            termination.know(progress)

    def _eta(self, step: int) -> float | None:
        """Seconds to the end at the pace of the last iterations, with the evaluations that are still to come."""
        if not self._recent:
            return None
        seconds = sum(self._recent) / len(self._recent) * (self.iterations - step)
        evaluations = self._kinds["evaluation"][-2:]
        if len(evaluations) == 2:
            one, other = (line["iteration"] for line in evaluations)
            ahead = math.ceil((self.iterations - other) / max(1, other - one))
            seconds += ahead * (evaluations[-1].get("seconds") or 0.0)
        return round(seconds, 1)

    def _alarm(self, iteration: int, alarm: alarms.Alarm) -> None:
        if alarm.name not in self._raised:  # once a run: a log full of one alarm hides the next
            self._raised.add(alarm.name)
            self._write({"kind": "alarm", "iteration": iteration, "name": alarm.name, "message": alarm.message})

    def _write(self, line: dict[str, Any]) -> None:
        whole: dict[str, Any] = finite(line)
        with self._lock:
            self.lines.append(whole)
            self._kinds[whole["kind"]].append(whole)
            if self.speaks:
                append_metrics(self.output.metrics, whole)
            for observer in self.observers:
                observer.observe(whole)

    def _pictures(self, iteration: int, pictures: Tensor) -> None:
        if not self.speaks:
            return
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
