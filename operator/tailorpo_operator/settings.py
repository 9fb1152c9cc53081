"""Settings of the operator: what `tailorpo operator` takes as options."""

from dataclasses import dataclass, field

from tailorpo_operator.api import naming
from tailorpo_operator.planning.backoff import Retries


@dataclass(frozen=True)
class Lease:
    """The Lease of the leader election."""

    namespace: str
    name: str = "tailorpo-operator"


@dataclass(frozen=True)
class Settings:
    """How the operator works. Times are in seconds.

    Attributes:
        namespaces: the watched ones; empty for all.
        image: the trainer image of jobs that name none.
        copied_prefixes: of labels and annotations of a job that reach its Jobs and pods.
        workers: jobs that are reconciled at the same time.
        requests_per_second, burst: limits of requests to the API server, without watches.
        request_timeout: until an unanswered request is retried. Watches end and start again within this time.
        resync: time between full lists of jobs, which find what watches have missed.
        progress_interval: average time between two progress requests to a job's first worker.
        progress_connections: progress requests at the same time.
        status_interval: time between two writes of a job's status that change only its progress.
        status_rate: such writes a second, for all jobs together.
        lease: the Lease of the leader election; None: this operator acts without an election.
        job_metrics: whether each job has series of its own, and job_metrics_limit: how many jobs have at most.
        stale: time without a turn of the event loop after which `/healthz` fails.
    """

    namespaces: tuple[str, ...] = ()
    image: str = naming.IMAGE
    copied_prefixes: tuple[str, ...] = naming.COPIED_PREFIXES
    workers: int = 16
    requests_per_second: float = 200.0
    burst: int = 400
    request_timeout: float = 30.0
    resync: float = 300.0
    progress_interval: float = 15.0
    progress_connections: int = 32
    status_interval: float = 30.0
    status_rate: float = 20.0
    job_metrics: bool = True
    job_metrics_limit: int = 2000
    stale: float = 120.0
    lease: Lease | None = None
    retries: Retries = field(default_factory=Retries)
