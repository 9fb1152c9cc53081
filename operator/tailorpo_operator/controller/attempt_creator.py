"""Creates the batch/v1 Job of an attempt, as this cluster takes it."""

from typing import Any

import orjson

from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import indexed_job
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.transport import Object, RefusedError
from tailorpo_operator.planning import pending_reason

OPENSHIFT = "security.openshift.io"
"""The API group of the constraints that give each namespace user and group IDs of its own."""


class AttemptCreator:
    """Remembers what the API server refuses whatever else happens, and does not ask for it again."""

    def __init__(self, cluster: KubeClient, image: str) -> None:
        self._cluster, self._image = cluster, image
        self._openshift: bool | None = None
        self._invalid: dict[Key, tuple[int, RefusedError]] = {}

    async def create(self, job: Job, number: int) -> Object:
        """The Job as it was created, or as it exists already. Raises `RefusedError`."""
        try:
            child = indexed_job.attempt(job, number, self._image, with_ids=not await self._gives_ids())
        except indexed_job.TooLarge as problem:
            raise RefusedError(422, indexed_job.TooLarge.__name__, str(problem)) from None
        key, made = Key(job.namespace, job.name), hash(orjson.dumps(child, option=orjson.OPT_SORT_KEYS))
        if (known := self._invalid.get(key)) is not None and known[0] == made:
            raise known[1]
        child = indexed_job.with_owner(child, job)
        if job.spec.scheduling.gang == "Required" and indexed_job.wants_gang(job):
            await self._require_gangs(child)
        try:
            created = await self._cluster.create_attempt_job(child)
        except RefusedError as refusal:
            if pending_reason.refusal(refusal.as_reason) == pending_reason.INVALID:
                self._invalid[key] = made, refusal
            raise
        self.forget(key)
        return created

    def forget(self, key: Key) -> None:
        self._invalid.pop(key, None)

    async def _gives_ids(self) -> bool:
        """Whether the cluster chooses the user and group of pods."""
        if self._openshift is None:
            self._openshift = await self._cluster.serves_group(OPENSHIFT)
        return self._openshift

    async def _require_gangs(self, child: dict[str, Any]) -> None:
        try:
            if await self._cluster.supports_gang_scheduling(child):
                return
        except RefusedError as refusal:
            if refusal.reason == "AlreadyExists":
                return
            raise
        message = (
            "spec.scheduling.gang: Required, and this cluster schedules no gangs: set it to Auto, name a queue in "
            "spec.scheduling.queueName, or switch on Kubernetes' feature gates GenericWorkload and WorkloadWithJob"
        )
        raise RefusedError(422, "NoGangScheduling", message)
