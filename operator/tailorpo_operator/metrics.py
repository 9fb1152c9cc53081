"""The operator's Prometheus metrics. Labels stay bounded: never a pod or a uid."""

from prometheus_client import Counter, Gauge, Histogram

from tailorpo_operator.api import Phase

PHASES: tuple[Phase, ...] = ("Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed")

REQUESTS = Counter(
    "tailorpo_operator_api_requests_total", "Requests to the API server, watches left out.", ("verb", "code")
)
JOBS = Gauge("tailorpo_operator_jobs", "Jobs in each phase; of the operator that acts.", ("phase",))
RECONCILE = Histogram(
    "tailorpo_operator_reconcile_seconds",
    "Time of one look at one job, with its requests.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
FAILED = Counter("tailorpo_operator_reconcile_errors_total", "Looks that ended in an error, and were repeated.")
ATTEMPTS = Counter("tailorpo_operator_attempts_total", "Attempts that have ended, by why.", ("reason",))
PENDING = Gauge(
    "tailorpo_operator_job_pending_seconds", "How long a job has waited for its pods.", ("namespace", "job")
)
LEADING = Gauge("tailorpo_operator_leading", "1 where this operator acts, 0 where it stands by.")
QUEUE = Gauge("tailorpo_operator_queue_length", "Jobs that wait to be looked at.")
