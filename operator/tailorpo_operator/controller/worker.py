"""Reconciles the keys of a queue, and retries with a backoff what has failed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic

from tailorpo_operator import metrics
from tailorpo_operator.controller.workqueue import Key, WorkQueue
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

log = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds of the backoff after an error: the first, which doubles with each further error, and the longest."""
DOUBLINGS = 10
"""At most: a request may be refused for months, and the power of two would overflow."""


class Worker(Generic[Key]):
    """Several tasks may call `run` at the same time.

    reconcile: makes the cluster what it should be, for one key.
    may_act: whether this process may write. If it may not, keys are dropped: the next leader reconciles all of them.
    log_fields: fields of a key's log lines.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        reconcile: Callable[[Key], Awaitable[None]],
        *,
        may_act: Callable[[], bool],
        log_fields: Callable[[Key], dict[str, Any]],
    ) -> None:
        self._queue, self._reconcile, self._may_act, self._log_fields = queue, reconcile, may_act, log_fields
        self._failures: dict[Key, int] = {}

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            key = await self._queue.get()
            try:
                if not self._may_act():
                    continue
                await self._reconcile(key)
                self.forget(key)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._requeue(key, error)
            finally:
                self._queue.done(key)

    def forget(self, key: Key) -> None:
        """Resets the backoff of a key."""
        self._failures.pop(key, None)

    def _requeue(self, key: Key, error: Exception) -> None:
        metrics.RECONCILE_ERRORS.inc()
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = min(FIRST_RETRY * 2.0 ** min(count, DOUBLINGS), LAST_RETRY)
        if isinstance(error, UnreachableError | RefusedError):
            level = logging.DEBUG if count else logging.WARNING  # an outage is logged once for each key
            log.log(level, "again in %.1f s: %s", delay, error, extra=self._log_fields(key))
        else:
            log.error("again in %.1f s", delay, exc_info=error, extra=self._log_fields(key))
        self._queue.add_after(key, delay)
