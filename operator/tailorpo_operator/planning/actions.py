"""The actions of a plan. The reconciler executes them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tailorpo_operator.api.types import Status
from tailorpo_operator.planning.observed import AttemptJob, Pod


@dataclass(frozen=True)
class CreateService:
    """Create the headless Service, one for all jobs of a namespace, unless it exists."""


@dataclass(frozen=True)
class CreateAttempt:
    """Create the batch/v1 Job of an attempt."""

    number: int


@dataclass(frozen=True)
class StopAttempt:
    """Delete the batch/v1 Job of an attempt with its pods, which may use their grace period for a checkpoint."""

    attempt_job: AttemptJob


@dataclass(frozen=True)
class DeletePod:
    """Delete one pod. force: at once, without a kubelet's confirmation that its processes have ended."""

    pod: Pod
    force: bool = False


@dataclass(frozen=True)
class DeleteJob:
    """Delete the TailorPOJob itself: its time to live is over."""


@dataclass(frozen=True)
class RecordEvent:
    """Create an event for `kubectl describe`. key: records with equal keys become one event."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


Create = CreateService | CreateAttempt
Delete = StopAttempt | DeletePod | DeleteJob


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: create, record events, write the status, delete.

    A creation can be repeated, because names are functions of job and attempt. The evidence that a deletion destroys
    is written to the status before.

    Attributes:
        status: what the job's status should be.
        requeue_at: when to reconcile again, even if nothing happens until then.
        fresh: do nothing yet, because the cache may lag behind: read the API server, and plan again.
    """

    status: Status
    create: tuple[Create, ...] = ()
    events: tuple[RecordEvent, ...] = ()
    delete: tuple[Delete, ...] = ()
    requeue_at: datetime | None = None
    fresh: bool = False
