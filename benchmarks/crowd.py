"""Pods that nobody runs: thousands say that they run, and one server answers for all of them how far they are."""

import asyncio
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tailorpo_operator import naming
from tailorpo_operator.wire import Wire

Tree = dict[str, Any]

STEP_SECONDS = 5.0
"""For which an iteration takes."""
OF = 10_000


def address(number: int) -> str:
    """One of its own for each: all of 127.0.0.0/8 is this machine."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


async def run(wire: Wire, pods: Iterable[Tree], clients: int = 16) -> None:
    """Writes what a kubelet would, for pods of plans without nodes: all run, and are ready."""
    waiting = iter(enumerate(pods))

    async def client() -> None:
        for number, pod in waiting:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
            await wire.request("patch", path, {"status": _running(pod, address(number))})

    await asyncio.gather(*(client() for _ in range(clients)))


def _running(pod: Tree, ip: str) -> Tree:
    now = _now()
    container = pod["spec"]["containers"][0]
    return {
        "phase": "Running",
        "startTime": now,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
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
        told = {"schemaVersion": 1, "attempt": 1, "phase": "Running", "step": step, "of": OF, "updated": _now()}
        told |= {"rates": {"imagesPerSecond": 12.5}, "metrics": {"reward": 0.001 * step, "loss": 0.69, "gap": 0.1}}
        return web.json_response(told)

    app = web.Application()
    app.router.add_get("/progress", progress)
    web.run_app(app, host="0.0.0.0", port=naming.METRICS_PORT, print=None, access_log=None)
    sys.exit()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
