"""A proxy before an API server, which records each request of one user and can let it fail."""

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

WRITING = ("POST", "PUT", "PATCH", "DELETE")
LARGE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Asked:
    """A request, as it came."""

    method: str
    path: str
    body: bytes = b""
    watches: bool = False

    @property
    def creates(self) -> str | None:
        """The name of the object that it would create."""
        return str(json.loads(self.body)["metadata"]["name"]) if self.method == "POST" else None

    @property
    def writes(self) -> bool:
        return self.method in WRITING


Rule = Callable[[Asked], int]
"""How to answer a request: 0 passes it on, a status answers with it, or one of these."""
DROP, DEAF, HELD = -1, -2, -3
"""Closes the connection before the request reaches the server, or after the answer; or holds it until `release`."""
REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}


def through(asked: Asked) -> int:
    return 0


class ApiProxy:
    """Speaks plain HTTP on loopback, and to the server as the user of a kubeconfig of `kubeconfig.write` with a token.

    `rule` and `delay`, the seconds before each request goes on, may change at any time.
    """

    def __init__(self, user: Path, folder: Path) -> None:
        self.rule: Rule = through
        self.delay = 0.0
        self.seen: list[Asked] = []
        self.held: list[Asked] = []
        self.kubeconfig = folder / "proxied.kubeconfig"
        given = json.loads(user.read_text())
        cluster = given["clusters"][0]["cluster"]
        self._server: str = cluster["server"]
        self._headers = {"Authorization": f"Bearer {given['users'][0]['user']['token']}"}
        self._tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self._loop = asyncio.new_event_loop()
        self._forwarding: set[asyncio.Task[Any]] = set()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="API proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        proxied: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxied", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "proxied", "user": {}}],
            "contexts": [{"name": "proxied", "context": {"cluster": "proxied", "user": "proxied"}}],
            "current-context": "proxied",
        }
        self.kubeconfig.write_text(json.dumps(proxied))
        return self

    def cut(self) -> None:
        """Closes all requests that are in flight, such as watches."""
        for task in list(self._forwarding):
            self._loop.call_soon_threadsafe(task.cancel)

    def release(self) -> None:
        """What was held arrives at the server."""
        self._loop.call_soon_threadsafe(self._released.set)

    def wait(self) -> None:
        """Until no rule is being asked that has been replaced."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result()

    def hold_watches(self) -> None:
        """Holds back the events of watches until `release_watches`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release_watches(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> int:
        self._flowing.set()
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        )
        self._released = asyncio.Event()
        app = web.Application(client_max_size=LARGE)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        forwarding = asyncio.current_task()
        assert forwarding is not None
        self._forwarding.add(forwarding)
        forwarding.add_done_callback(self._forwarding.discard)
        watching = "watch" in request.query
        asked = Asked(request.method, request.path, await request.read(), watching)
        self.seen.append(asked)
        if self.delay:
            await asyncio.sleep(self.delay)
        verdict = self.rule(asked)
        if verdict > 0:
            status = {"kind": "Status", "code": verdict, "reason": REASONS.get(verdict, ""), "message": "injected"}
            return web.json_response(status, status=verdict)
        if verdict == HELD:
            self.held.append(asked)
            await self._released.wait()
        if verdict == DEAF:
            await asyncio.shield(asyncio.ensure_future(self._do(request, asked)))  # though the client may be gone
        if verdict in (DROP, DEAF):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        async with self._ask(request, asked) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            with suppress(ConnectionResetError):  # the client was killed
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if watching:
                        await self._flowing.wait()
                    await response.write(chunk)
                await response.write_eof()
            return response

    async def _do(self, request: web.Request, asked: Asked) -> None:
        async with self._ask(request, asked) as answer:
            await answer.read()

    def _ask(self, request: web.Request, asked: Asked) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        kept = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        return self._session.request(
            request.method,
            self._server + request.path_qs,
            data=asked.body or None,
            headers=kept | self._headers,
            ssl=self._tls,
        )
