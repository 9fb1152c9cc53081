"""Prometheus metrics of a run (`docs/metrics.md`). Names, types and labels are public API."""

import platform
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary

from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.stats import flops
from tailorpo_trainer.telemetry import alarms
from tailorpo_trainer.telemetry.accelerator import Accelerator
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart
from tailorpo_trainer.versions import installed

LABELS = ("job_namespace", "job_name")
"""Labels of every metric; `job_namespace` is empty outside a cluster. Prometheus itself gives each target the labels
`namespace` and `job`, so these names are free. No pod or uid: each attempt would add time series."""

Costs = Callable[[], Mapping[str, float]]

ITERATION = {
    "loss": ("tailorpo_loss", "Loss of the last iteration"),
    "reward": ("tailorpo_reward", "Mean weighted sum of the rewards in the last iteration"),
    "gap": ("tailorpo_reward_gap", "Mean reward of the winner minus the loser's in the last iteration"),
    "implicit_accuracy": ("tailorpo_implicit_accuracy", "Share of pairs that the policy orders as the reward does"),
    "logit": ("tailorpo_logit", "Mean preference logit of the last iteration"),
    "clamped": ("tailorpo_clamped_ratio", "Share of likelihood ratios that were clamped"),
    "gradient_norm": ("tailorpo_gradient_norm", "Norm of the gradient before clipping"),
    "learning_rate": ("tailorpo_learning_rate", "Step size of the last update"),
    "images_per_second": ("tailorpo_images_per_second", "Training pictures a second, over the last iterations"),
    "eta_seconds": ("tailorpo_eta_seconds", "Seconds to the end, evaluations included"),
}
"""Gauges, by key of a line of kind `iteration`."""

EVALUATION = {
    "reward": ("tailorpo_evaluation_reward", "Mean weighted sum of the rewards on held-out noise"),
    "reward_standard_error": ("tailorpo_evaluation_reward_standard_error", "Standard error of that mean"),
    "diversity": ("tailorpo_diversity", "Mean distance between held-out pictures of one prompt"),
    "feature_diversity": ("tailorpo_feature_diversity", "The same between their CLIP embeddings, if a reward has any"),
}
"""Gauges, by key of a line of kind `evaluation`."""

CHECKPOINT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)

PACKAGES = ("tailorpo", "torch", "diffusers")


class Metrics(Observer):
    """Turns lines into metrics of its own registry. A value that is not known (yet, or for this method) is absent.

    Counters start at 0 in each process. Prometheus takes any decrease of a counter for a restart from 0, so a counter
    that started at its checkpoint's total would count that total again.

    Args:
        progress: gives the labels and the number of iterations.
        steps: number of denoising steps.
        costs: returns the FLOPs of one row of each kind of work, as in `cost.json`; called once, when the run begins.
        accelerator: that of this process.
        processes: of the run.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        steps: int = 1,
        costs: Costs = dict,
        accelerator: Accelerator | None = None,
        processes: int = 1,
    ) -> None:
        self.registry = CollectorRegistry()
        self.identity = identity(progress)
        self.iterations = progress.of or 0
        # Grafana may sort the rows of a heat map as text.
        self._digits = max(2, len(str(steps - 1)))
        self._shown_steps: set[str] = set()
        self._find_costs, self._costs = costs, dict[str, float]()
        self._totals: dict[str, float] = {}
        self._iteration = {key: self._gauge(*name_and_help) for key, name_and_help in ITERATION.items()}
        self._evaluation = {key: self._gauge(*name_and_help) for key, name_and_help in EVALUATION.items()}
        self._score = self._gauge(
            "tailorpo_evaluation_score", "Mean of one reward on held-out noise; watched ones too", "reward"
        )
        self._training_score = self._gauge(
            "tailorpo_training_score", "Mean of one reward of the sum in the last iteration", "reward"
        )
        self._step = self._gauge("tailorpo_step", "Iterations done, over all attempts")
        self._of = self._gauge("tailorpo_iterations", "Iterations asked for")
        self._attempt = self._gauge("tailorpo_attempt", "Which attempt this is, from 1")
        self._attempt_start = self._gauge(
            "tailorpo_attempt_start_timestamp_seconds", "When this attempt had loaded everything, since 1970"
        )
        self._alarm = self._gauge("tailorpo_alarm", "1 once the alarm was raised in this run, else 0", "alarm")
        self._step_gap = Summary(
            "tailorpo_step_reward_gap",
            "Mean reward gap of the pairs of one denoising step (0 the noisiest), observed once an iteration",
            (*LABELS, "denoising_step"),
            registry=self.registry,
        )
        self._last_step_gap = self._gauge(
            "tailorpo_step_reward_gap_last", "The same of the last iteration only", "denoising_step"
        )
        self._phase = Summary(
            "tailorpo_phase_seconds",
            "Seconds that one iteration (or evaluation) spent in a phase, exclusive of phases inside it",
            (*LABELS, "phase"),
            registry=self.registry,
        )
        self._samples = self._counter("tailorpo_samples", "Training pictures drawn by this process")
        self._queries = self._counter("tailorpo_reward_queries", "Pictures that a reward has scored for this process")
        self._forwards = self._counter(
            "tailorpo_denoiser_forwards", "Rows that the denoiser has predicted for training, of all processes"
        )
        self._flops = self._counter("tailorpo_flops", "Estimated floating-point operations of training, all processes")
        self._saving = Histogram(
            "tailorpo_checkpoint_seconds",
            "Seconds from the state to the committed checkpoint",
            LABELS,
            registry=self.registry,
            buckets=CHECKPOINT_BUCKETS,
        )
        self._saved_bytes = self._counter("tailorpo_checkpoint_bytes", "Bytes of the checkpoints committed")
        self._save_failures = self._counter("tailorpo_checkpoint_failures", "Checkpoints that could not be written")
        self._saved_at = self._gauge(
            "tailorpo_checkpoint_last_success_timestamp_seconds", "When this process last committed one, since 1970"
        )
        self._saved_step = self._gauge("tailorpo_checkpoint_step", "Iterations in the newest checkpoint")
        self._gauge("tailorpo_build_info", "What runs", *PACKAGES, "python").labels(
            *self.identity, *(installed(package) or "" for package in PACKAGES), platform.python_version()
        ).set(1)
        ProcessCollector(registry=self.registry)
        if accelerator is not None:
            self.registry.register(accelerator)
            if accelerator.peak_flops is not None:
                peak = self._gauge("tailorpo_peak_flops", "FLOP/s that the accelerators of all processes can do")
                _set(peak, self.identity, processes * accelerator.peak_flops)

    def begin(self, start: RunStart) -> None:
        self._totals = dict(start.totals)
        self._costs = self._known_costs() if start.iteration < self.iterations else {}
        _set(self._attempt, self.identity, start.attempt)
        _set(self._attempt_start, self.identity, time.time())
        _set(self._of, self.identity, self.iterations)
        _set(self._step, self.identity, start.iteration)
        counters = [self._samples, self._queries, self._forwards, self._saved_bytes, self._save_failures, self._saving]
        for metric in (*counters, self._flops) if self._costs else counters:
            metric.labels(*self.identity)  # appear with 0, so that Prometheus sees the first increase
        for name in alarms.NAMES:
            _set(self._alarm, (*self.identity, name), 0)
        if start.iteration:
            _set(self._saved_step, self.identity, start.iteration)
        for line in start.lines:
            match line["kind"]:
                case "iteration":
                    self._set_iteration(line)
                case "evaluation":
                    self._set_evaluation(line)
                case "alarm":
                    self.alarm(line)

    def iteration(self, line: Line) -> None:
        _set(self._step, self.identity, line["iteration"])
        self._set_iteration(line)
        for step, gap in self._gaps(line).items():
            self._step_gap.labels(*self.identity, step).observe(gap)
        for phase, seconds in line["phase_seconds"].items():
            self._phase.labels(*self.identity, phase).observe(seconds)
        totals = line["totals"]
        work = {key: max(0, total - self._totals.get(key, 0)) for key, total in totals.items()}
        for metric, key in (
            (self._samples, "images"),
            (self._queries, "reward_queries"),
            (self._forwards, "denoiser_forwards"),
        ):
            metric.labels(*self.identity).inc(work[key])
        if self._costs:
            self._flops.labels(*self.identity).inc(flops(work, self._costs))
        self._totals = totals

    def evaluation(self, line: Line) -> None:
        self._set_evaluation(line)
        self._phase.labels(*self.identity, "evaluation").observe(line["seconds"])

    def checkpoint(self, line: Line) -> None:
        if "error" in line:
            self._save_failures.labels(*self.identity).inc()
            return
        self._saving.labels(*self.identity).observe(line["seconds"])
        self._saved_bytes.labels(*self.identity).inc(line["bytes"])
        _set(self._saved_at, self.identity, time.time())
        _set(self._saved_step, self.identity, line["iteration"])

    def alarm(self, line: Line) -> None:
        _set(self._alarm, (*self.identity, line["name"]), 1)

    def _known_costs(self) -> dict[str, float]:
        try:
            return dict(self._find_costs())
        except TailorPOError:  # as of a model that can be trained and not estimated
            return {}

    def _gaps(self, line: Line) -> dict[str, float]:
        """The gaps of an iteration by denoising step, as the label's value."""
        gaps = line.get("gap_by_step", {}).items()
        return {step.zfill(self._digits): gap for step, gap in gaps if gap is not None}

    def _set_iteration(self, line: Line) -> None:
        for key, gauge in self._iteration.items():
            _set(gauge, self.identity, line.get(key))
        for name, value in line.get("rewards", {}).items():
            _set(self._training_score, (*self.identity, name), value)
        gaps = self._gaps(line)
        for step in self._shown_steps - gaps.keys():  # the trained steps may be drawn anew each iteration
            _set(self._last_step_gap, (*self.identity, step), None)
        for step, gap in gaps.items():
            _set(self._last_step_gap, (*self.identity, step), gap)
        self._shown_steps = set(gaps)

    def _set_evaluation(self, line: Line) -> None:
        for key, gauge in self._evaluation.items():
            _set(gauge, self.identity, line.get(key))
        for name, value in line["rewards"].items():
            _set(self._score, (*self.identity, name), value)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, (*LABELS, *labels), registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry)


def identity(progress: Progress) -> tuple[str, str]:
    """The values of `LABELS` for a run."""
    return progress.namespace or "", progress.name or ""


def _set(gauge: Gauge, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        gauge.labels(*labels).set(value)
    else:
        gauge.remove(*labels)
