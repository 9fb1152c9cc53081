"""The operator's Prometheus metrics. Labels stay bounded: never a pod or a uid."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
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
ATTEMPTS = Counter("tailorpo_operator_attempts_total", "Attempts that have ended, by reason.", ("reason",))
LEADING = Gauge("tailorpo_operator_leading", "1 if this operator is the leader, 0 if it is not.")
QUEUE = Gauge("tailorpo_operator_queue_length", "Jobs that wait to be reconciled.")


class JobSample(NamedTuple):
    """One job. pending: seconds that it has waited for its pods; None if it does not wait."""

    namespace: str
    name: str
    phase: str
    pending: float | None


class JobsCollector(Collector):
    """Metrics of all jobs, computed at each scrape from `source`, which the manager sets."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterable[JobSample]] = tuple

    def collect(self) -> Iterable[GaugeMetricFamily]:
        samples = list(self.source())
        jobs = GaugeMetricFamily(
            "tailorpo_operator_jobs", "Jobs in each phase; reported by the leader only.", labels=["phase"]
        )
        phases = Counts(sample.phase for sample in samples)
        for phase in PHASES:
            jobs.add_metric([phase], phases[phase])
        yield jobs
        pending = GaugeMetricFamily(
            "tailorpo_operator_job_pending_seconds",
            "How long a job has waited for its pods.",
            labels=["namespace", "job"],
        )
        for sample in samples:
            if sample.pending is not None:
                pending.add_metric([sample.namespace, sample.name], sample.pending)
        yield pending


JOBS = JobsCollector()
REGISTRY.register(JOBS)
