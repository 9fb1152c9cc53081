"""Settings of the operator: what `tailorpo operator` takes as options."""

from dataclasses import dataclass, field

from tailorpo_operator.api import naming
from tailorpo_operator.planning.backoff import Retries


@dataclass(frozen=True)
class Lease:
    """Where operators agree on who works."""

    namespace: str
    name: str = "tailorpo-operator"


@dataclass(frozen=True)
class Settings:
    """How the operator works. Seconds, unless it says otherwise.

    Attributes:
        namespaces: watched ones; none: all.
        image: the trainer's, for jobs that name none.
        workers: jobs that are looked at at the same time.
        requests_per_second, burst: to the API server, watches left out.
        request_timeout: until a request that is not answered is tried again; a watch is begun anew as often.
        resync: between lists of everything, which find what watches have missed.
        progress_interval: between two questions to the same job's first worker, on average.
        progress_connections: questions at the same time.
        status_interval: between two writes of a job's status that only tell of progress.
        status_rate: such writes a second, of all jobs.
        lease: whoever holds it works, of several; None: this one does.
        stale: without a turn of the loops, after which the operator is not alive any more.
    """

    namespaces: tuple[str, ...] = ()
    image: str = naming.IMAGE
    workers: int = 16
    requests_per_second: float = 200.0
    burst: int = 400
    request_timeout: float = 30.0
    resync: float = 300.0
    progress_interval: float = 15.0
    progress_connections: int = 32
    status_interval: float = 30.0
    status_rate: float = 20.0
    stale: float = 120.0
    lease: Lease | None = None
    retries: Retries = field(default_factory=Retries)
