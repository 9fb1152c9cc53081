"""Serves `/healthz`, `/readyz` and `/metrics`."""

import asyncio
import gzip
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tailorpo_trainer.errors import ConfigurationError


class Deadlines:
    """Tasks that have to be done again and again: a watch may be dead and raise no error.

    clock: seconds, monotonic.
    limits: for each task, the seconds within which it has to be done again.
    """

    def __init__(self, clock: Callable[[], float], **limits: float) -> None:
        self._clock, self._limits = clock, limits
        self._last = dict.fromkeys(limits, clock())

    def reset(self, name: str) -> None:
        """The task has been done now."""
        self._last[name] = self._clock()

    def age(self, name: str) -> float:
        """Seconds since the task was last done."""
        return self._clock() - self._last[name]

    def overdue(self) -> str | None:
        """A message about the first task whose deadline has passed."""
        for name, limit in self._limits.items():
            if (passed := self._clock() - self._last[name]) > limit:
                return f"no {name} for {passed:.0f} s"
        return None


def _page(encode: Callable[[CollectorRegistry], bytes], zipped: bool) -> bytes:
    page = encode(REGISTRY)
    return gzip.compress(page, compresslevel=1) if zipped else page


def _site(runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
    """Where the server listens. `::` is IPv4 and IPv6 together, for which asyncio alone would open IPv6 only."""
    if host != "::":
        return web.TCPSite(runner, host, port)
    if not socket.has_dualstack_ipv6():  # a kernel without IPv6
        return web.TCPSite(runner, "0.0.0.0", port)
    listening = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return web.SockSite(runner, listening)


@asynccontextmanager
async def serving(
    host: str, port: int, live: Callable[[], str | None], ready: Callable[[], str | None]
) -> AsyncIterator[int]:
    """Serves until the end of `with`, and yields the port. live, ready: return a problem, or None.

    Raises `ConfigurationError`.
    """

    def probe(check: Callable[[], str | None]) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problem = check()
            return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

        return answer

    scraping = asyncio.Lock()  # for many scrapers at once must not take all threads

    async def scrape(request: web.Request) -> web.Response:
        """In a thread: thousands of jobs take long, and this event loop also renews the Lease."""
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        zipped = "gzip" in request.headers.get("Accept-Encoding", "")
        async with scraping:
            body = await asyncio.to_thread(_page, encode, zipped)
        return web.Response(
            body=body, headers={"Content-Type": kind, **({"Content-Encoding": "gzip"} if zipped else {})}
        )

    app = web.Application()
    app.router.add_get("/healthz", probe(live))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await _site(runner, host, port).start()
        except OSError as error:
            known = error.errno is not None and not isinstance(error, socket.gaierror)
            reason = os.strerror(error.errno or 0) if known else error.strerror
            raise ConfigurationError(f"cannot listen on --host {host} --port {port}: {reason}") from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
