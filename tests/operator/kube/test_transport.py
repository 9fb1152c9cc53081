"""Requests to a server that is busy, or does not accept the token any more."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient

from tailorpo_operator.kube import kubeconfig as kube_config
from tailorpo_operator.kube import transport
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.kube.transport import RefusedError, Transport, UnreachableError

Answer = Callable[[web.Request], Awaitable[web.Response]]


def kubeconfig(folder: Path, port: int, token: str) -> Path:
    file = folder / "kubeconfig"
    given = {
        "clusters": [{"name": "any", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "any", "user": {"token": token}}],
        "contexts": [{"name": "any", "context": {"cluster": "any", "user": "any"}}],
        "current-context": "any",
    }
    file.write_text(json.dumps(given))
    return file


@asynccontextmanager
async def connected(
    folder: Path, answer: Answer, may_write: Callable[[], bool] | None = None, rate: float = 1000, pool: int = 0
) -> AsyncIterator[tuple[Transport, Callable[[str], object]]]:
    """A transport to a server with this handler; and a function that replaces the token in the kubeconfig."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        file = kubeconfig(folder, port, "first")
        configuration = await kube_config.load(file, None)
        configuration.connection_pool_maxsize = pool
        if may_write is not None:
            configuration.trace_configs = [transport.writing_only_if(may_write)]
        async with ApiClient(configuration) as client:
            renew = partial(kube_config.renew, configuration, file, None)
            yield Transport(client, RateLimit(rate, math.ceil(rate)), renew), partial(kubeconfig, folder, port)
    finally:
        await runner.cleanup()


def test_a_token_that_was_replaced_is_taken_over(tmp_path: Path) -> None:
    valid, asked = "first", list[str]()

    async def answer(request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        asked.append(token)
        return web.json_response({}, status=200 if token == valid else 401)

    async def story() -> None:
        nonlocal valid
        async with connected(tmp_path, answer) as (sender, replace):
            await sender.request("get", "/any")
            valid = "second"
            with pytest.raises(RefusedError) as refused:  # the kubeconfig has the old one still
                await sender.request("get", "/any")
            assert refused.value.status == 401
            replace("second")
            await asyncio.gather(*(sender.request("get", "/any") for _ in range(3)))
            asked.clear()
            await sender.request("get", "/any")
            assert asked == ["second"]

    asyncio.run(story())


def test_a_kubeconfig_that_went_does_not_end_anything(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"message": "Unauthorized"}, status=401)

    async def story() -> None:
        async with connected(tmp_path, answer) as (sender, _):
            (tmp_path / "kubeconfig").unlink()
            with pytest.raises(RefusedError, match="Unauthorized"):
                await sender.request("get", "/any")

    asyncio.run(story())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_says_when_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    asked, slept = 0, list[float]()

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        busy = {1: "7", 2: "3600", 3: "soon"}
        return web.json_response({}, status=status, headers={"Retry-After": busy[asked]}) if asked in busy else done

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    done = web.json_response({"kind": "Any"})

    async def story() -> None:
        async with connected(tmp_path, answer) as (sender, _):
            monkeypatch.setattr(asyncio, "sleep", sleep)
            assert await sender.request("get", "/any") == {"kind": "Any"}

    asyncio.run(story())
    assert slept[:2] == [7.0, transport.MAX_RETRY_AFTER]
    assert 0 < slept[2] < 7


def test_a_page_that_is_no_answer_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example of a proxy that cannot reach the server, and answers with the status 200."""
    pages = ["<html>", "", '{"kind": "Any"}']

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=pages.pop(0), content_type="application/json")

    async def story() -> None:
        async with connected(tmp_path, answer) as (sender, _):
            monkeypatch.setattr(transport, "FIRST_BACKOFF", 0.01)
            assert await sender.request("get", "/any") == {"kind": "Any"}

    asyncio.run(story())


def test_more_watches_than_a_pool_has_connections(tmp_path: Path) -> None:
    """With many namespaces each watch holds one connection, and a request gets another."""
    count, held, over = 120, 0, asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal held
        if request.path == "/watch":
            held += 1
            await over.wait()
        return web.json_response({})

    async def story() -> None:
        async with connected(tmp_path, answer) as (sender, _):
            watches = [asyncio.create_task(sender.request("get", "/watch")) for _ in range(count)]
            while held < count:
                await asyncio.sleep(0.01)
            await sender.request("get", "/any")
            over.set()
            await asyncio.gather(*watches)

    asyncio.run(story())


def test_a_server_before_gangs_makes_a_job_without_one(tmp_path: Path) -> None:
    fields = list[str]()

    async def answer(request: web.Request) -> web.Response:
        spec = (await request.json())["spec"]
        fields.extend(spec)
        if "scheduling" in spec and request.query["fieldValidation"] == "Strict":
            return web.json_response({"message": 'strict decoding error: unknown field "spec.scheduling"'}, status=400)
        return web.json_response({"kind": "Job"})

    async def story() -> None:
        async with connected(tmp_path, answer) as (sender, _):
            child = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"namespace": "any", "name": "any"},
                "spec": {"scheduling": {}, "completions": 2},
            }
            assert await KubeClient(sender).create_attempt_job(child) == {"kind": "Job"}

    asyncio.run(story())
    assert fields == ["scheduling", "completions", "completions"]


@pytest.mark.parametrize("limits", [{"rate": 1}, {"pool": 1}], ids=["for its turn", "for a connection"])
def test_a_write_that_waits_while_another_takes_over_is_not_sent(tmp_path: Path, limits: dict[str, int]) -> None:
    leads, asked = True, list[str]()

    async def answer(request: web.Request) -> web.Response:
        nonlocal leads
        asked.append(request.method)
        leads = False
        return web.json_response({})

    async def story() -> None:
        async with connected(tmp_path, answer, lambda: leads, **limits) as (sender, _):
            both = sender.request("get", "/any"), sender.request("create", "/any", {})
            read, written = await asyncio.gather(*both, return_exceptions=True)
            assert read == {}
            assert isinstance(written, UnreachableError)
            assert asked == ["GET"]
            await sender.request("get", "/any")  # an operator that does not lead may read

    asyncio.run(story())


def test_a_write_is_not_tried_again_when_another_has_taken_over(tmp_path: Path) -> None:
    leads, asked = True, list[str]()

    async def answer(request: web.Request) -> web.Response:
        nonlocal leads
        asked.append(request.method)
        leads = False
        return web.json_response({}, status=503)

    async def story() -> None:
        async with connected(tmp_path, answer, lambda: leads) as (sender, _):
            with pytest.raises(UnreachableError, match="left to another operator"):
                await sender.request("create", "/any", {})

    asyncio.run(story())
    assert asked == ["POST"]
