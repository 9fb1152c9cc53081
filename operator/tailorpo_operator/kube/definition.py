"""The schema of TailorPOJobs that the API server serves, which may be of another version than this operator.

It is read from `/openapi/v3`, which every user may read; the definition itself needs a right in the whole cluster.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tailorpo_operator.api import skew
from tailorpo_operator.api.skew import Path
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.transport import RefusedError

log = logging.getLogger(__name__)

VALID_SECONDS, INCOMPLETE_SECONDS = 30.0, 2.0
"""For which a schema is used before it is read again; the API server publishes a changed one some seconds after it has
begun to fill in the new defaults, so one that lacks a field is soon read again."""


class ServedDefinition:
    """Reads the schema when it is first needed: nothing needs it while definition and operator are of one version."""

    def __init__(self, cluster: KubeClient) -> None:
        self._cluster = cluster
        self._schema: Mapping[str, Any] = {}
        self._read_at = -VALID_SECONDS
        self._lock = asyncio.Lock()

    async def schema(self, paths: Sequence[Path]) -> Mapping[str, Any]:
        """The schema of a job; empty where the API server does not publish it. paths: fields that it should have."""
        clock = asyncio.get_running_loop().time
        async with self._lock:
            complete = all(skew.field(self._schema, path) for path in paths)
            if clock() - self._read_at >= (VALID_SECONDS if complete else INCOMPLETE_SECONDS):
                try:
                    self._schema = await self._cluster.served_schema()
                except RefusedError as refusal:
                    log.warning("the schema of TailorPOJobs cannot be read: %s", refusal)
                    self._schema = {}
                self._read_at = clock()
        return self._schema
