"""Takes keys from a queue, and looks at each: what fails is looked at again, and nothing is lost by it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic

from tailorpo_operator import metrics
from tailorpo_operator.controller.workqueue import Key, WorkQueue
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

log = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 0.5, 30.0
"""Seconds until the next look after an error, which double."""
DOUBLINGS = 10
"""More would be no number in the end: what is refused may be refused for months."""


class Worker(Generic[Key]):
    """Any number of `run` may share it.

    look: makes the cluster what it should be, as far as a key goes.
    acts: whether this process may; whoever may next looks at everything.
    about: fields for the log.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        look: Callable[[Key], Awaitable[None]],
        *,
        acts: Callable[[], bool],
        about: Callable[[Key], dict[str, Any]],
    ) -> None:
        self._queue, self._look, self._acts, self._about = queue, look, acts, about
        self._failures: dict[Key, int] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            key = await self._queue.get()
            try:
                if not self._acts():
                    continue
                await self._look(key)
                self.forget(key)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self._again(key, error)
            finally:
                self._queue.done(key)

    def forget(self, key: Key) -> None:
        """How often it has failed."""
        self._failures.pop(key, None)

    def _again(self, key: Key, error: Exception) -> None:
        metrics.RECONCILE_ERRORS.inc()
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay = min(FIRST_RETRY * 2.0 ** min(count, DOUBLINGS), LAST_RETRY)
        if isinstance(error, UnreachableError | RefusedError):
            level = logging.DEBUG if count else logging.WARNING  # an outage is told once for each key
            log.log(level, "again in %.1f s: %s", delay, error, extra=self._about(key))
        else:
            log.error("again in %.1f s", delay, exc_info=error, extra=self._about(key))
        self._queue.add_after(key, delay)
