"""Records a run: `metrics.jsonl`, `progress.json`, pictures, alarms."""

import io
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer import files
from tailorpo_trainer.errors import ExitCode, TailorPOError
from tailorpo_trainer.evaluation.measurement import Measurement
from tailorpo_trainer.results.ownership import Owner
from tailorpo_trainer.results.run_folder import RunFolder, append_metrics, finite, rewrite_metrics
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.spec.progress import Checkpoint, Metrics, Progress, Rates, redact
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.telemetry.display import Display
from tailorpo_trainer.telemetry.observer import Observer, RunStart
from tailorpo_trainer.telemetry.termination import TerminationReporter
from tailorpo_trainer.telemetry.timing import Phases
from tailorpo_trainer.training.updater import UpdateFacts
from tailorpo_trainer.versions import now


class Recorder:
    """Writes a run's figures to its folder, and passes each line on to the observers.

    Attributes:
        writes: whether it writes files; of several processes only the first does, and only while it owns the folder.
        display: shows messages; it is the first of the observers.
        observers: receive each line of `metrics.jsonl`.
        incomplete: whether the last iteration could not be recorded; a resume must begin before it.
        totals: work over all attempts: images, reward_queries, denoiser_forwards, … , seconds.
        lines: of `metrics.jsonl`; a number that is not finite is None there.
    """

    def __init__(self, folder: RunFolder, reporter: TerminationReporter, writes: bool = True) -> None:
        assert reporter.progress.of is not None
        self.folder, self.reporter, self.writes = folder, reporter, writes
        self.iterations = reporter.progress.of
        self.display = Display()
        self.observers: Sequence[Observer] = ()
        self.phases = Phases()
        self.incomplete = False
        self.totals: dict[str, float] = {}
        self.lines: list[dict[str, Any]] = []
        self._kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._recent: deque[float] = deque(maxlen=20)
        self._raised: set[str] = set()
        self._since = time.perf_counter()
        self._owner: Owner | None = None
        self._successor: str | None = None
        self._taken_over: Callable[[str], None] = lambda successor: None
        self._lock = threading.RLock()  # checkpoints are recorded by another thread
        if writes:
            reporter.keep_in(folder.progress)

    def show(self, display: Display, observers: Sequence[Observer] = ()) -> None:
        """Pass messages on to a display, and lines to it and to other observers."""
        self.display, self.observers = display, (display, *observers)

    def own(self, owner: Owner, taken_over: Callable[[str], None]) -> None:
        """Take the folder for this attempt. taken_over: called once with the successor, when another run takes it."""
        with self._lock:
            self._taken_over = taken_over
            if self.writes:
                owner.take(self.folder.root)
                self._owner = owner
            elif self._successor is not None:  # the checkpoint thread has heard of it already
                taken_over(self._successor)

    def release(self, successor: str) -> None:
        """Write nothing more, since another run owns the folder or the storage. Callable from any thread."""
        with self._lock:
            if self.writes:
                self.writes, self._successor = False, successor
                self.reporter.release()
                self._taken_over(successor)

    def owns(self) -> bool:
        """Whether it writes files and no later run has taken the folder."""
        successor = self._owner.successor(self.folder.root) if self.writes and self._owner else None
        if successor is not None:
            self.release(successor)
        return self.writes

    def message(self, text: str) -> None:
        """Show a message that is no line of `metrics.jsonl`."""
        self.display.message(text)

    def resume(
        self, attempt: int, iteration: int, totals: Mapping[str, float], checkpoint: Checkpoint | None = None
    ) -> None:
        """Continue at a checkpoint: delete the lines and pictures after it, which is everything at iteration 0."""
        self.totals = dict(totals)
        written = self.folder.read_metrics() if self.writes else []
        self.lines = [line for line in written if 0 < iteration >= line["iteration"]]
        self._kinds.clear()
        for line in self.lines:
            self._kinds[line["kind"]].append(line)
        self._raised = {line["name"] for line in self._kinds["alarm"]}
        if self.writes:
            rewrite_metrics(self.folder.metrics, self.lines)
            self.folder.delete_samples(line["iteration"] for line in self._kinds["evaluation"])
        for observer in self.observers:
            observer.begin(RunStart(attempt, iteration, self.totals, self.lines))
        # The other processes do not learn of newer checkpoints, so they must not report this one as the newest.
        newest = checkpoint if self.writes else None
        self._report(phase="Running", attempt=attempt, step=iteration, resumed_from=checkpoint, checkpoint=newest)
        self._since = time.perf_counter()

    def has_evaluation(self, iteration: int) -> bool:
        """Whether there is an evaluation of this iteration already."""
        return any(line["iteration"] == iteration for line in self._kinds["evaluation"])

    def evaluation_reward(self, iteration: int) -> float | None:
        """The weighted reward of this iteration's evaluation; None if there was none."""
        rewards = [line["reward"] for line in self._kinds["evaluation"] if line["iteration"] == iteration]
        return rewards[-1] if rewards else None

    def iteration(self, iteration: int, scorer: Scorer, facts: UpdateFacts, work: dict[str, float]) -> None:
        """Record one iteration. work: what it adds to `totals`."""
        since, self._since = self._since, time.perf_counter()
        seconds = self._since - since
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
            "gradient_zeros": facts.gradient_zeros,
            "learning_rate": facts.learning_rate,
            "images_per_second": work["images"] * len(self._recent) / sum(self._recent),
            "eta_seconds": self._eta(iteration),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
            "phase_seconds": {key: round(value, 5) for key, value in self.phases.seconds.items()},
        }
        if facts.gap is not None:
            decided = facts.weight > 0
            # Where policy and reference are equal, as before the first update, the policy prefers neither.
            ordered = logit[decided & (logit != 0)]
            line |= {
                "gap": float(facts.gap.mean()),
                "gap_by_step": _by_step(facts.gap, facts.step),
                "tied": float((~decided).float().mean()),
                "implicit_accuracy": float((ordered > 0).float().mean()) if len(ordered) else None,
            }
        if scorer.agreement.compared:
            line |= {"rank_agreement": scorer.agreement.share, "rank_agreement_pairs": scorer.agreement.compared}
        self.phases.seconds.clear()
        self.incomplete = True
        self._write(line)
        self.incomplete = False
        self._report(step=iteration)
        for alarm in alarms.from_iterations(self._kinds["iteration"][-alarms.ITERATIONS :]):
            self._alarm(iteration, alarm)
        if "rank_agreement" in line:
            for alarm in alarms.from_checks(self._kinds["iteration"]):
                self._alarm(iteration, alarm)

    def evaluation(self, iteration: int, measured: Measurement, watched: tuple[str, ...], seconds: float) -> None:
        """Record one evaluation, and write its pictures."""
        line = {
            "kind": "evaluation",
            "iteration": iteration,
            "images": len(measured.reward),
            "reward": float(measured.reward.double().mean()),
            "reward_standard_error": _standard_error(measured.reward),
            "rewards": {name: float(scores.double().mean()) for name, scores in measured.term_scores.items()},
            "rewards_standard_error": {name: _standard_error(scores) for name, scores in measured.term_scores.items()},
            "watched": list(watched),
            "diversity": measured.diversity,
            "diversity_standard_error": measured.diversity_error,
            "feature_diversity": measured.feature_diversity,
            "feature_diversity_standard_error": measured.feature_diversity_error,
            "scores": _rounded(measured.reward),
            "watched_scores": {name: _rounded(measured.term_scores[name]) for name in watched},
            "prompts": measured.prompts[: len(measured.pictures)],
            "seconds": round(seconds, 3),
            "totals": {key: round(value, 4) for key, value in self.totals.items()},
        }
        self._write_pictures(iteration, measured.pictures)
        self._write(line)
        self._report()
        for alarm in alarms.from_evaluations(self._kinds["evaluation"]):
            self._alarm(iteration, alarm)
        self._since = time.perf_counter()  # evaluation is not training time

    def checkpoint_saved(self, step: int, uri: str, seconds: float, size: int) -> None:
        """Record a complete checkpoint. seconds: time to write it; size: in bytes. Callable from any thread."""
        self._report(checkpoint=Checkpoint(uri=uri, step=step, time=now()))  # first, since the disk may be full
        self._write({"kind": "checkpoint", "iteration": step, "uri": uri, "seconds": round(seconds, 3), "bytes": size})

    def checkpoint_failed(self, step: int, error: BaseException) -> None:
        """Record a try to write a checkpoint that failed. Callable from any thread."""
        self._write({"kind": "checkpoint", "iteration": step, "error": redact(str(error))})

    def succeeded(self, adapter: str) -> None:
        """Record that all iterations are done. adapter: where the result is."""
        self._report(phase="Succeeded", adapter=adapter)

    def failed(self, error: TailorPOError, cause: int | None = None) -> None:
        """Record the error that ends the run, with an alarm if a number that is not finite caused it.

        cause: exit code of the process that ended the run, if it was another one.
        """
        if ExitCode.NOT_FINITE in (error.exit_code, cause):
            self._alarm(self.reporter.progress.step + 1, alarms.Alarm("not-finite", str(error)))
        self.reporter.end(error)

    def _report(self, **changes: Any) -> None:
        """Update `progress.json`, the termination message and what the server answers."""

        def changed(progress: Progress) -> Progress:
            step = changes.get("step", progress.step)
            running = changes.get("phase", progress.phase) == "Running"
            last: dict[str, Any] = next(reversed(self._kinds["iteration"]), {})
            measured: dict[str, Any] = next(reversed(self._kinds["evaluation"]), {})
            return progress.replace(
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

        with self._lock:
            self.owns()
            self.reporter.update(changed)

    def _eta(self, step: int) -> float | None:
        """Seconds to the end: remaining iterations at the recent pace, and the remaining evaluations."""
        if not self._recent:
            return None
        seconds = sum(self._recent) / len(self._recent) * (self.iterations - step)
        evaluations = self._kinds["evaluation"][-2:]
        if len(evaluations) == 2:
            previous, last = (line["iteration"] for line in evaluations)
            remaining = math.ceil((self.iterations - last) / max(1, last - previous))
            seconds += remaining * (evaluations[-1].get("seconds") or 0.0)
        return round(seconds, 1)

    def _alarm(self, iteration: int, alarm: alarms.Alarm) -> None:
        if alarm.name not in self._raised:  # once a run, or the log would be full of it
            self._raised.add(alarm.name)
            self._write({"kind": "alarm", "iteration": iteration, "name": alarm.name, "message": alarm.message})

    def _write(self, line: dict[str, Any]) -> None:
        values: dict[str, Any] = finite(line)
        with self._lock:
            self.lines.append(values)
            self._kinds[values["kind"]].append(values)
            if self.writes:
                append_metrics(self.folder.metrics, values, self.owns)
            for observer in self.observers:
                observer.observe(values)

    def _write_pictures(self, iteration: int, pictures: Tensor) -> None:
        if not self.owns():
            return
        from PIL import Image

        for old in self.folder.sample(iteration, 0).parent.glob("*.png"):
            files.remove(old)
        values = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for number, picture in enumerate(values):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files.replace(self.folder.sample(iteration, number), file.getvalue())


def _by_step(values: Tensor, step: Tensor) -> dict[str, float]:
    return {str(index): float(values[step == index].mean()) for index in step.unique().tolist()}


def _standard_error(values: Tensor) -> float | None:
    """Standard error of the mean; None for one value, which does not determine it."""
    return float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else None


def _rounded(values: Tensor) -> list[float]:
    """The values with six significant digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
