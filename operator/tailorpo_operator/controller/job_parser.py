"""From a job as the API server serves it to one that a plan can be made for, also across versions of the definition."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tailorpo_operator import metrics
from tailorpo_operator.api import skew
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import Job
from tailorpo_operator.kube.definition import ServedDefinition
from tailorpo_operator.planning.attempts import finished
from tailorpo_operator.planning.observed import Reason
from tailorpo_trainer.versions import installed

log = logging.getLogger(__name__)

NOT_UNDERSTOOD = "NotUnderstood"


class JobParser:
    """Keeps which jobs are not understood, for the metric."""

    def __init__(self, definition: ServedDefinition, copied_prefixes: Sequence[str]) -> None:
        self._definition, self._copied_prefixes = definition, copied_prefixes
        self._not_understood: dict[Key, str] = {}

    async def parse(self, key: Key, raw: Mapping[str, Any]) -> tuple[Job | None, Reason | None]:
        """The job, and what of it is not understood. Without a job nothing can be planned; with both, an attempt that
        exists is brought to its end, and no other begins."""
        job, problem = await self._parse(raw)
        self._note(key, problem)
        if job is not None:
            job = job.copying(self._copied_prefixes)
        return job, None if problem is None else Reason(NOT_UNDERSTOOD, problem)

    def forget(self, key: Key) -> None:
        self._note(key, None)

    def _note(self, key: Key, problem: str | None) -> None:
        if problem is not None and self._not_understood.get(key) != problem:
            log.error("not understood: %s", problem, extra={"job": f"{key.namespace}/{key.name}"})
        if problem is None:
            self._not_understood.pop(key, None)
        else:
            self._not_understood[key] = problem
        metrics.NOT_UNDERSTOOD.set(len(self._not_understood))

    async def _parse(self, raw: Mapping[str, Any]) -> tuple[Job | None, str | None]:
        try:
            return _complete(Job.model_validate(raw))
        except ValidationError as error:
            unknown = skew.unknown_fields(error)
            if unknown is None:
                return None, _left_alone(_first(error))
        schema = await self._definition.schema(unknown)
        asked = [path for path in unknown if not skew.is_default(raw, path, schema)]
        try:
            job, problem = _complete(Job.model_validate(skew.without(raw, unknown)))
        except ValidationError as error:
            return None, _left_alone(_first(error))
        if problem is None and asked:
            problem = _waits(", ".join(skew.show(raw, path) for path in asked[:3]))
        return job, problem


def _complete(job: Job) -> tuple[Job | None, str | None]:
    """The job, unless another version has ended it in a way that this one has no condition for."""
    if job.status.completion_time is not None and not finished(job.status):
        return None, _left_alone("status.conditions: it has ended under a condition that is not known here")
    return job, None


def _first(error: ValidationError) -> str:
    errors = error.errors(include_url=False, include_input=False)
    # Among defaults that are not known, the value that is not known is what the user wrote.
    first = next((each for each in errors if each["type"] != "extra_forbidden"), errors[0])
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _left_alone(problem: str) -> str:
    return f"{problem}: left alone until operator and CustomResourceDefinition are of one version"


def _waits(fields: str) -> str:
    version = installed("tailorpo") or "this"
    return f"{fields}: not known to version {version} of the operator; no attempt begins until it is upgraded"
