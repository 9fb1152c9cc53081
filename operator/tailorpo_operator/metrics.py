"""The operator's Prometheus metrics (`docs/metrics.md`). Names, types and labels are public API.

Labels stay bounded: never a pod or a uid. The series of a job come from its status, and end with the job.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tailorpo_operator.api.types import Phase

PHASES: tuple[Phase, ...] = ("Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed")

REQUESTS = Counter(
    "tailorpo_operator_api_requests_total", "Requests to the API server, watches left out.", ("verb", "code")
)
RECONCILE = Histogram(
    "tailorpo_operator_reconcile_seconds",
    "Time to reconcile one job, with its requests.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RECONCILE_ERRORS = Counter("tailorpo_operator_reconcile_errors_total", "Reconciles that failed, and were requeued.")
NOT_UNDERSTOOD = Gauge(
    "tailorpo_operator_jobs_not_understood", "Jobs that ask for something that this version of the operator cannot do."
)
ATTEMPTS = Counter("tailorpo_operator_attempts_total", "Attempts that have ended, by reason.", ("reason",))
LEADING = Gauge("tailorpo_operator_leading", "1 if this operator is the leader, 0 if it is not.")
READY = Gauge("tailorpo_operator_ready", "1 if this operator knows all objects and reaches the API server, else 0.")
WATCH_AGE = Gauge(
    "tailorpo_operator_watch_age_seconds", "Time since a kind of object was last heard of by its watch.", ("kind",)
)
QUEUE = Gauge("tailorpo_operator_queue_length", "Jobs that wait to be reconciled.")

MINUTE, HOUR, DAY = 60, 3600, 86_400
PENDING_DURATION = Histogram(
    "tailorpo_job_pending_duration_seconds",
    "Time from the beginning of an attempt until all its pods ran.",
    ("job_namespace",),
    buckets=(1, 5, 15, 30, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR, DAY, 3 * DAY),
)
RUNNING_DURATION = Histogram(
    "tailorpo_job_running_duration_seconds",
    "Time from when all pods of an attempt ran until its end.",
    ("job_namespace",),
    buckets=(MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, DAY, 2 * DAY, 4 * DAY, 8 * DAY),
)
LOST_STEPS = Histogram(
    "tailorpo_job_restart_lost_steps",
    "Iterations that an attempt had done and its newest checkpoint does not hold, when the next attempt begins.",
    ("job_namespace",),
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)

JOB = ("job_namespace", "job_name")
"""Labels of every series of a job. Prometheus itself gives each target the labels `namespace` and `job`."""
INFO = ("model", "method", "reward", "workers", "queue")

JOB_GAUGES = {
    "step": ("tailorpo_job_step", "Iterations done, over all attempts."),
    "iterations": ("tailorpo_job_iterations", "Iterations asked for."),
    "reward": ("tailorpo_job_reward", "Mean weighted sum of the rewards in the last iteration."),
    "evaluation_reward": ("tailorpo_job_evaluation_reward", "The same on held-out noise, in the last evaluation."),
    "attempts": ("tailorpo_job_attempts", "Attempts that have begun."),
    "restarts": ("tailorpo_job_restarts", "Attempts after the first."),
    "checkpoint_step": ("tailorpo_job_checkpoint_step", "Iterations in the newest checkpoint."),
    "created": ("tailorpo_job_created_timestamp_seconds", "When the job was created."),
    "start": ("tailorpo_job_start_timestamp_seconds", "When its first pod ran, plus the time in a queue."),
    "completion": ("tailorpo_job_completion_timestamp_seconds", "When it ended."),
    "pending": ("tailorpo_job_pending_seconds", "How long it has waited for its pods, while it waits."),
}
"""Gauges with one series a job, by key of `JobSample.figures`; `gpu_seconds` is a counter."""


class JobSample(NamedTuple):
    """One job.

    Attributes:
        info: the values of `INFO`.
        failed_reason: None unless it is Failed.
        figures: those of `JOB_GAUGES` that are known, and `gpu_seconds`.
    """

    namespace: str
    name: str
    uid: str
    phase: str
    info: tuple[str, ...]
    failed_reason: str | None
    figures: Mapping[str, float]


class Jobs(NamedTuple):
    """All jobs. phases: their number in each phase; omitted: how many of them are not in `samples`."""

    phases: Mapping[str, int]
    samples: list[JobSample]
    omitted: int


class JobsCollector(Collector):
    """Metrics of all jobs, computed at each scrape from `source`, which the manager sets. One scrape at a time."""

    def __init__(self) -> None:
        self.source: Callable[[], Jobs] = lambda: Jobs({}, [], 0)
        self._gpu_seconds: dict[str, float] = {}

    def collect(self) -> Iterable[Metric]:
        found = self.source()
        jobs = GaugeMetricFamily(
            "tailorpo_operator_jobs", "Jobs in each phase; reported by the leader only.", labels=["phase"]
        )
        for phase in PHASES:
            jobs.add_metric([phase], found.phases.get(phase, 0))
        yield jobs
        yield GaugeMetricFamily(
            "tailorpo_operator_job_metrics_omitted", "Jobs without metrics of their own.", found.omitted
        )
        yield from self._states(found.samples)
        for key, (name, text) in JOB_GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=JOB)
            for sample in found.samples:
                if key in sample.figures:
                    gauge.add_metric(sample[:2], sample.figures[key])
            yield gauge
        yield self._accelerator_time(found.samples)

    def _states(self, samples: list[JobSample]) -> Iterable[Metric]:
        info = GaugeMetricFamily("tailorpo_job_info", "1, with what the job trains.", labels=(*JOB, *INFO))
        status = GaugeMetricFamily("tailorpo_job_status", "1 for the phase of the job, else 0.", labels=(*JOB, "phase"))
        failed = GaugeMetricFamily(
            "tailorpo_job_failed_reason", "1, with the reason, while the job is Failed.", labels=(*JOB, "reason")
        )
        for sample in samples:
            key = sample[:2]
            info.add_metric((*key, *sample.info), 1)
            for phase in PHASES:
                status.add_metric((*key, phase), float(sample.phase == phase))
            if sample.failed_reason is not None:
                failed.add_metric((*key, sample.failed_reason), 1)
        return info, status, failed

    def _accelerator_time(self, samples: list[JobSample]) -> Metric:
        """A counter must not fall, but the end of an attempt is written later than it is, and in whole seconds."""
        before, self._gpu_seconds = self._gpu_seconds, {}
        counter = CounterMetricFamily(
            "tailorpo_job_gpu_seconds", "Accelerators times the time in which all pods of an attempt ran.", labels=JOB
        )
        for sample in samples:
            if (seconds := sample.figures.get("gpu_seconds")) is not None:
                self._gpu_seconds[sample.uid] = max(seconds, before.get(sample.uid, 0.0))
                counter.add_metric(sample[:2], self._gpu_seconds[sample.uid])
        return counter


JOBS = JobsCollector()
REGISTRY.register(JOBS)
