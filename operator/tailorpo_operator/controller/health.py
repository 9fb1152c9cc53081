"""`/healthz`, `/readyz` and `/metrics`."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from tailorpo_trainer.errors import ConfigurationError


class Deadlines:
    """What has to be done again and again, and the seconds that it may be left undone: a watch may be dead unnoticed.

    clock: seconds, always forward.
    """

    def __init__(self, clock: Callable[[], float], **limits: float) -> None:
        self._clock, self._limits = clock, limits
        self._last = dict.fromkeys(limits, clock())

    def beat(self, name: str) -> None:
        """It is done."""
        self._last[name] = self._clock()

    def late(self) -> str | None:
        """The first that was left undone for too long."""
        for name, limit in self._limits.items():
            if (passed := self._clock() - self._last[name]) > limit:
                return f"no {name} for {passed:.0f} s"
        return None


@asynccontextmanager
async def serving(
    host: str, port: int, healthy: Callable[[], str | None], ready: Callable[[], str | None]
) -> AsyncIterator[int]:
    """Serves until the end of `with`; yields the port. Both answer with what is wrong, or None.

    Raises `ConfigurationError`.
    """

    def probe(wrong: Callable[[], str | None]) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problem = wrong()
            return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

        return answer

    async def figures(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", figures)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            known = error.errno is not None and not isinstance(error, socket.gaierror)
            words = os.strerror(error.errno or 0) if known else error.strerror
            raise ConfigurationError(f"cannot listen on --host {host} --port {port}: {words}") from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
