"""What a plan asks for. `cluster.py` carries it out."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tailorpo_operator.api.types import Status
from tailorpo_operator.planning.observed import AttemptJob, Pod


@dataclass(frozen=True)
class CreateService:
    """The headless Service, one for all jobs of a namespace, unless it is there."""


@dataclass(frozen=True)
class CreateAttempt:
    """The batch/v1 Job of an attempt."""

    number: int


@dataclass(frozen=True)
class StopAttempt:
    """Delete the batch/v1 Job of an attempt, and with it its pods: each may take its grace period for a checkpoint."""

    attempt_job: AttemptJob


@dataclass(frozen=True)
class DeletePod:
    """Delete one pod. force: at once, without a kubelet's word that its processes have ended."""

    pod: Pod
    force: bool = False


@dataclass(frozen=True)
class DeleteJob:
    """Delete the TailorPOJob itself: its time to live is over."""


@dataclass(frozen=True)
class RecordEvent:
    """An event for `kubectl describe`. key: two with the same are one, whoever sends them how often."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


Create = CreateService | CreateAttempt
Delete = StopAttempt | DeletePod | DeleteJob


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: create, announce, write the status, delete.

    A creation can be repeated, for names are functions of job and attempt. What a deletion destroys as evidence is in
    the status before.

    Attributes:
        status: what the job's status should be.
        requeue_at: when to plan again, even if nothing happens until then.
        fresh: nothing may be done on what a watch has shown: plan again with what the API server says now.
    """

    status: Status
    create: tuple[Create, ...] = ()
    events: tuple[RecordEvent, ...] = ()
    delete: tuple[Delete, ...] = ()
    requeue_at: datetime | None = None
    fresh: bool = False
