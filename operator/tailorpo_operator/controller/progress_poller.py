"""Asks the first worker of each running job how far it is. No answer is no failure: pods may be out of reach."""

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
TURN_SECONDS = 0.5


class ProgressPoller:
    """The newest report of each job, kept in `reports`; `leaders` says whom to ask."""

    def __init__(
        self,
        leaders: Callable[[], Mapping[Key, Pod]],
        reports: dict[Key, Report],
        news: Callable[[Key], None],
        *,
        interval: float,
        connections: int,
    ) -> None:
        self._leaders, self._reports, self._news = leaders, reports, news
        self._interval = interval
        self._limit = asyncio.Semaphore(connections)
        self._due: dict[str, float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled. The questions of many jobs are spread over the interval."""
        loop = asyncio.get_running_loop()
        # By the next question each server has closed its connection; kept for thousands they take much memory.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        # Pods are strangers: none may set cookies for another, nor send little that unpacks to much.
        async with aiohttp.ClientSession(
            timeout=TIMEOUT,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        ) as session:
            try:
                while True:
                    leaders, clock = self._leaders(), loop.time()
                    known = {pod.uid for pod in leaders.values()}
                    self._due = {uid: due for uid, due in self._due.items() if uid in known}
                    for key, pod in leaders.items():
                        if clock >= self._due.setdefault(pod.uid, clock + random.uniform(0, min(1, self._interval))):
                            self._due[pod.uid] = clock + self._interval * random.uniform(0.75, 1.25)
                            task = asyncio.create_task(self._ask(session, key, pod))
                            self._asking.add(task)
                            task.add_done_callback(self._asking.discard)
                    await asyncio.sleep(min(TURN_SECONDS, self._interval))
            finally:
                for task in self._asking:
                    task.cancel()

    async def _ask(self, session: aiohttp.ClientSession, key: Key, pod: Pod) -> None:
        async with self._limit:
            try:
                told = await _get(session, pod)
            except Exception as error:  # whoever answers there may bring about any
                log.debug("no progress of %s: %s", pod.name, line(str(error), MESSAGE_LENGTH))
                return
        if told is None:
            log.debug("no progress of %s: its answer is none", pod.name)
            return
        before = self._reports.get(key)
        same = before is not None and before.pod == pod.uid and before.progress.step == told.step
        now = datetime.now(UTC)
        self._reports[key] = Report(pod.attempt, told, before.advanced_at if before and same else now, now, pod.uid)
        if before is None or before.progress != told:
            self._news(key)


async def _get(session: aiohttp.ClientSession, pod: Pod) -> Progress | None:
    """What it answers; None if that is no progress. No more is read than one has.

    It is parsed on the loop that renews the Lease. A thread would not help, for it keeps the interpreter to itself
    while it parses: what helps is that the answer is short and parsing takes time in proportion to its length.
    """
    host = f"[{pod.address}]" if ":" in str(pod.address) else pod.address
    async with session.get(f"http://{host}:{naming.METRICS_PORT}/progress", allow_redirects=False) as answer:
        answer.raise_for_status()
        body = bytearray()
        while len(body) <= MAX_BYTES and (part := await answer.content.read(MAX_BYTES + 1 - len(body))):
            body += part
    return Progress.read(bytes(body))
