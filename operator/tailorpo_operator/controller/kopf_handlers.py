"""kopf's part: it watches TailorPOJobs. The handler keeps what it is shown and says where to look; it decides nothing.

Only `on.event`, which writes nothing by itself: no annotation, no finalizer, no last-handled state.
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
"""Seconds between its tries, before it gives up and we begin anew: it takes every refusal for a failure."""
IDLE_SECONDS = 0.1
"""For which kopf keeps a job, with a task of its own, after the last that was heard of it."""
STOP_SECONDS = 5.0
"""For kopf to end in; its thread ends with the process."""


async def watch(registry: kopf.OperatorRegistry, namespaces: tuple[str, ...], timeout: float) -> None:
    """Runs kopf until it gives up, and raises why. timeout: seconds for a request, as of `Transport`.

    In a thread with a loop of its own: what begins in kopf's loop after kopf is cancelled when kopf ends, whoever
    began it; and in the main thread it would take the signals.
    """
    begun: Future[Callable[[], object]] = Future()
    ended: Future[None] = Future()

    async def operate() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        begun.set_result(partial(loop.call_soon_threadsafe, stop.set))
        loop.set_exception_handler(lambda _, told: log.debug("kopf: %s", told["message"]))  # as of tasks cut short
        await kopf.operator(
            registry=registry,
            settings=settings(timeout),
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
    stop, end = await asyncio.wrap_future(begun), asyncio.wrap_future(ended)
    try:
        await asyncio.wait([end])
    finally:
        if not end.done():
            with suppress(RuntimeError):  # its loop has just ended
                stop()
            await asyncio.wait([end], timeout=STOP_SECONDS)
        error = end.exception() if end.done() else None
    if error is not None:
        raise error


def registry(cache: Cache, add: Callable[[Key], None], login: Any) -> kopf.OperatorRegistry:
    """The handler, and what it acts on: in the loop that runs now, not in kopf's."""
    made, loop = kopf.OperatorRegistry(), asyncio.get_running_loop()

    def seen(kind: str | None, tree: Any) -> None:
        add(cache.drop_job(tree) if kind == "DELETED" else cache.put_job(tree))

    async def job(event: Any, **_: Any) -> None:
        loop.call_soon_threadsafe(seen, event["type"], event["object"])

    kopf.on.event(GROUP, VERSION, PLURAL, registry=made)(job)
    kopf.on.login(registry=made)(login)
    return made


class _Indifferent(kopf.DiffBaseStorage):
    """Keeps nothing of what was handled, and compares nothing: kopf would copy each object, even for `on.event`."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


def settings(timeout: float) -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.watching.server_timeout = math.ceil(max(WATCH_SHARES) * timeout)
    made.watching.client_timeout = made.watching.server_timeout + WATCH_GRACE * timeout
    made.watching.connect_timeout = made.networking.connect_timeout = min(CONNECT_SECONDS, timeout)
    made.networking.request_timeout = timeout
    made.networking.error_backoffs = BACKOFFS
    # Else it holds all jobs at once when it starts, each for as long as its worker waits for more of it.
    made.watching.chunk_size = PAGE_SIZE
    made.queueing.idle_timeout = IDLE_SECONDS
    made.scanning.disabled = True  # needs rights on definitions and namespaces of the whole cluster
    made.posting.enabled = False
    made.persistence.diffbase_storage = _Indifferent()
    made.process.ultimate_exiting_timeout = None
    return made
