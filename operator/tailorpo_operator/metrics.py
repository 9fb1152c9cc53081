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
    "Time of one look at one job, with its requests.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
FAILED = Counter("tailorpo_operator_reconcile_errors_total", "Looks that ended in an error, and were repeated.")
ATTEMPTS = Counter("tailorpo_operator_attempts_total", "Attempts that have ended, by why.", ("reason",))
LEADING = Gauge("tailorpo_operator_leading", "1 where this operator acts, 0 where it stands by.")
QUEUE = Gauge("tailorpo_operator_queue_length", "Jobs that wait to be looked at.")


class Figure(NamedTuple):
    """Of a job. pending: seconds it has waited for its pods; None: it does not."""

    namespace: str
    name: str
    phase: str
    pending: float | None


class Jobs(Collector):
    """Figures of all jobs, made when they are asked for. `source` is set by whoever knows them."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterable[Figure]] = tuple

    def collect(self) -> Iterable[GaugeMetricFamily]:
        figures = list(self.source())
        jobs = GaugeMetricFamily(
            "tailorpo_operator_jobs", "Jobs in each phase; of the operator that acts.", labels=["phase"]
        )
        phases = Counts(figure.phase for figure in figures)
        for phase in PHASES:
            jobs.add_metric([phase], phases[phase])
        yield jobs
        pending = GaugeMetricFamily(
            "tailorpo_operator_job_pending_seconds",
            "How long a job has waited for its pods.",
            labels=["namespace", "job"],
        )
        for figure in figures:
            if figure.pending is not None:
                pending.add_metric([figure.namespace, figure.name], figure.pending)
        yield pending


JOBS = Jobs()
REGISTRY.register(JOBS)
