"""kopf's handlers. kopf watches TailorPOJobs; a handler puts each into the cache and its key into the queue.

Only `on.event`, for which kopf writes nothing itself: no annotation, no finalizer, no last-handled state. There is no
`on.probe`: kopf calls it only for an endpoint of its own, which is not served while kopf is started again and has
neither `/readyz` nor `/metrics`. So `health` serves all three.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

import kopf

from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.transport import CONNECT_SECONDS, PAGE_SIZE, WATCH_GRACE, WATCH_SHARES

log = logging.getLogger(__name__)

BACKOFFS = (1, 2)
"""Seconds between kopf's tries. After the last it gives up, and is started again: to kopf a refusal is a failure."""
IDLE_SECONDS = 0.1
"""For which kopf keeps a job in memory, with a task for it, after the last event."""
STOP_SECONDS = 5.0
"""For kopf to stop; after that its thread ends with the process."""


async def watch(registry: kopf.OperatorRegistry, namespaces: tuple[str, ...]) -> None:
    """Runs kopf until it gives up, and raises the reason.

    In a thread with an event loop of its own: at its end kopf cancels all tasks of its loop that began after its start,
    including those of others; and in the main thread it would handle the signals.
    """
    started: Future[Callable[[], object]] = Future()
    ended: Future[None] = Future()

    async def operate() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        started.set_result(partial(loop.call_soon_threadsafe, stop.set))
        # As of tasks that are cancelled before they begin.
        loop.set_exception_handler(lambda _, context: log.debug("kopf: %s", context["message"]))
        await kopf.operator(
            registry=registry,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )

    def run() -> None:
        try:
            asyncio.run(operate())
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="kopf", daemon=True).start()
    stop, end = await asyncio.wrap_future(started), asyncio.wrap_future(ended)
    try:
        await asyncio.wait([end])
    finally:
        if not end.done():
            with suppress(RuntimeError):  # its loop has just been closed
                stop()
            await asyncio.wait([end], timeout=STOP_SECONDS)
        error = end.exception() if end.done() else None
    if error is not None:
        raise error


def registry(cache: Cache, add: Callable[[Key], None], login: Any, timeout: float) -> kopf.OperatorRegistry:
    """All handlers. The cache and the queue are changed in the event loop that runs now, not in kopf's.

    timeout: seconds for a request, as of `Transport`.
    """
    handlers, loop = kopf.OperatorRegistry(), asyncio.get_running_loop()

    def observe(kind: str | None, raw: Any) -> None:
        add(cache.drop_job(raw) if kind == "DELETED" else cache.put_job(raw))

    @kopf.on.startup(registry=handlers)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings, timeout)
        log.debug("kopf starts to watch TailorPOJobs")

    @kopf.on.cleanup(registry=handlers)
    async def cleanup(**_: Any) -> None:
        log.debug("kopf has stopped to watch TailorPOJobs")

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def event(event: Any, **_: Any) -> None:
        loop.call_soon_threadsafe(observe, event["type"], event["object"])

    kopf.on.login(registry=handlers)(login)
    return handlers


class NoDiffs(kopf.DiffBaseStorage):
    """Stores and compares nothing: for a comparison kopf would copy each object, even if there is only `on.event`."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


def configure(settings: kopf.OperatorSettings, timeout: float) -> None:
    settings.watching.server_timeout = math.ceil(max(WATCH_SHARES) * timeout)
    settings.watching.client_timeout = settings.watching.server_timeout + WATCH_GRACE * timeout
    settings.watching.connect_timeout = settings.networking.connect_timeout = min(CONNECT_SECONDS, timeout)
    settings.networking.request_timeout = timeout
    settings.networking.error_backoffs = BACKOFFS
    # Without pages kopf holds all jobs in memory when it starts, each until its idle timeout.
    settings.watching.chunk_size = PAGE_SIZE
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.scanning.disabled = True  # it needs rights on definitions and namespaces of the whole cluster
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffs()
    settings.process.ultimate_exiting_timeout = None
