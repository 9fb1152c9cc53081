"""Pods that nobody runs: thousands say that they run, and one server answers for all of them how far they are."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tailorpo_operator.api import naming
from tailorpo_operator.kube.transport import Transport
from tailorpo_trainer.versions import now

Object = dict[str, Any]

STEP_SECONDS = 5.0
"""For which an iteration takes."""
OF = 10_000


def address(number: int) -> str:
    """One of its own for each: all of 127.0.0.0/8 is this machine."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


async def by_many(requests: Iterable[Awaitable[object]], clients: int) -> None:
    """Each of them once, so many at the same time."""
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            await request

    await asyncio.gather(*(client() for _ in range(clients)))


async def run(transport: Transport, pods: Iterable[Object], clients: int = 16) -> None:
    """Writes what a kubelet would, for pods of plans without nodes: all run, and are ready."""

    async def report(number: int, pod: Object) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        await transport.request("patch", path, {"status": _running(pod, address(number))})

    await by_many((report(number, pod) for number, pod in enumerate(pods)), clients)


def _running(pod: Object, ip: str) -> Object:
    time = now()
    container = pod["spec"]["containers"][0]
    return {
        "phase": "Running",
        "startTime": time,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time}],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": time}},
            }
        ],
    }


@contextmanager
def answering() -> Iterator[None]:
    """`/progress` of all of them, from another process: each takes a step in `STEP_SECONDS`."""
    server = multiprocessing.get_context("spawn").Process(target=_serve, daemon=True)
    server.start()
    try:
        yield
    finally:
        server.kill()
        server.join()


def _serve() -> None:
    async def progress(request: web.Request) -> web.Response:
        step = int(asyncio.get_running_loop().time() / STEP_SECONDS) % OF
        document = {
            "schemaVersion": 1,
            "attempt": 1,
            "phase": "Running",
            "step": step,
            "of": OF,
            "updated": now(),
        }
        document |= {
            "rates": {"imagesPerSecond": 12.5},
            "metrics": {"reward": 0.001 * step, "loss": 0.69, "gap": 0.1},
        }
        return web.json_response(document)

    app = web.Application()
    app.router.add_get("/progress", progress)
    web.run_app(app, host="0.0.0.0", port=naming.METRICS_PORT, print=None, access_log=None)
