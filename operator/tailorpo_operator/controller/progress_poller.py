"""Asks the first worker of each running job for its progress. No answer is no failure: a pod may be unreachable."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import aiohttp

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key
from tailorpo_operator.planning.observed import Pod, Report
from tailorpo_trainer.spec.progress import MAX_BYTES, MESSAGE_LENGTH, Progress, line

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=3, connect=2)
CHECK_SECONDS = 0.5
"""Between checks for jobs whose next request is due."""


class ProgressPoller:
    """Keeps the newest report of each job in `reports`.

    leaders: returns the pod to ask, of each running job. enqueue: called with each job whose progress has changed.
    """

    def __init__(
        self,
        leaders: Callable[[], Mapping[Key, Pod]],
        reports: dict[Key, Report],
        enqueue: Callable[[Key], None],
        *,
        interval: float,
        connections: int,
    ) -> None:
        self._leaders, self._reports, self._enqueue = leaders, reports, enqueue
        self._interval = interval
        self._limit = asyncio.Semaphore(connections)
        self._due: dict[str, float] = {}

    async def run(self) -> None:
        """Runs until it is cancelled. The requests to many pods are spread over the interval."""
        loop = asyncio.get_running_loop()
        # Each server closes its connection before the next request; thousands of idle connections take much memory.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        # Pods are not trusted: none may set cookies for another, or send a small body that decompresses to a large one.
        async with (
            aiohttp.ClientSession(
                timeout=TIMEOUT,
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                leaders, clock = self._leaders(), loop.time()
                known = {pod.uid for pod in leaders.values()}
                self._due = {uid: due for uid, due in self._due.items() if uid in known}
                for key, pod in leaders.items():
                    if clock >= self._due.setdefault(pod.uid, clock + random.uniform(0, min(1, self._interval))):
                        self._due[pod.uid] = clock + self._interval * random.uniform(0.75, 1.25)
                        group.create_task(self._poll(session, key, pod))
                await asyncio.sleep(min(CHECK_SECONDS, self._interval))

    async def _poll(self, session: aiohttp.ClientSession, key: Key, pod: Pod) -> None:
        async with self._limit:
            try:
                progress = await _get(session, pod)
            except Exception as error:  # what answers there may cause any error
                log.debug("no progress of %s: %s", pod.name, line(str(error), MESSAGE_LENGTH))
                return
        if progress is None:
            log.debug("no progress of %s: its answer is not a progress document", pod.name)
            return
        before = self._reports.get(key)
        same = before is not None and before.pod == pod.uid and before.progress.step == progress.step
        now = datetime.now(UTC)
        self._reports[key] = Report(pod.attempt, progress, before.advanced_at if before and same else now, now, pod.uid)
        if before is None or before.progress != progress:
            self._enqueue(key)


async def _get(session: aiohttp.ClientSession, pod: Pod) -> Progress | None:
    """The pod's answer; None if that is not a progress document. At most one byte more is read than one may have.

    It is parsed in the event loop that renews the Lease. A thread would not help, because it holds the interpreter's
    lock while it parses. So the answer has to be short, and parsing takes time in proportion to its length.
    """
    host = f"[{pod.address}]" if ":" in str(pod.address) else pod.address
    async with session.get(f"http://{host}:{naming.METRICS_PORT}/progress", allow_redirects=False) as answer:
        answer.raise_for_status()
        body = bytearray()
        while len(body) <= MAX_BYTES and (chunk := await answer.content.read(MAX_BYTES + 1 - len(body))):
            body += chunk
    return Progress.read(bytes(body))
