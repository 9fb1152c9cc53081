"""kopf's handlers, against an API server of this test; and what is used of kopf that a new version may change."""

import asyncio
import importlib
import inspect
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import kopf
import pytest
from aiohttp import web

from tailorpo_operator import logs
from tailorpo_operator.api.naming import Key
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tailorpo_operator.controller import kopf_handlers
from tailorpo_operator.kube.cache import Cache
from tests.operator.kube.test_cache import KEY, raw_job

CATS = Key(KEY.namespace, "cats")
CREATED = {"type": "ADDED", "object": {"metadata": raw_job(20, "cats")["metadata"] | {"name": "cats"}, "spec": {}}}
DELETED = {"type": "DELETED", "object": raw_job(21)}


@asynccontextmanager
async def api_server() -> AsyncIterator[tuple[str, list[str]]]:
    """Has one job, of which a watch tells the deletion, and another. Yields its address, and all requests."""
    requests = list[str]()
    resources = {
        "customresourcedefinitions": ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        PLURAL: (f"{GROUP}/{VERSION}", "TailorPOJob"),
        "namespaces": ("v1", "Namespace"),
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        requests.append(f"{request.method} {request.path}")
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            names = [version.split("/") for version, _ in resources.values() if "/" in version]
            versions = {group: {"groupVersion": f"{group}/{name}", "version": name} for group, name in names}
            groups = [{"name": name, "versions": [each], "preferredVersion": each} for name, each in versions.items()]
            return web.json_response({"groups": groups})
        if not request.path.endswith(PLURAL):
            found = [
                {
                    "name": name,
                    "singularName": "",
                    "kind": kind,
                    "namespaced": name == PLURAL,
                    "verbs": ["list", "watch"],
                }
                for name, (version, kind) in resources.items()
                if request.path.endswith(f"/{version}")
            ]
            return web.json_response({"resources": found})
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "10"}, "items": [raw_job()]})
        stream = web.StreamResponse()
        await stream.prepare(request)
        for event in (CREATED, DELETED):
            await stream.write(json.dumps(event).encode() + b"\n")
        await asyncio.sleep(60)
        return stream

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    finally:
        await runner.cleanup()


def test_jobs_come_into_the_cache_and_the_queue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one list and one watch, and no write; kopf compares no objects, and logs nothing of its own."""
    built = list[kopf.Body]()
    build = kopf_handlers.NoDiffs.build

    def counted(self: kopf_handlers.NoDiffs, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        built.append(body)
        return build(self, body=body, extra_fields=extra_fields)

    monkeypatch.setattr(kopf_handlers.NoDiffs, "build", counted)
    cache, added, requests = Cache(), list[Key](), list[str]()

    async def story() -> None:
        async with api_server() as (address, seen):

            async def login(**_: Any) -> kopf.ConnectionInfo:
                return kopf.ConnectionInfo(server=address)

            registry = kopf_handlers.registry(cache, added.append, login, 5)
            watching = asyncio.create_task(kopf_handlers.watch(registry, ()))
            async with asyncio.timeout(30):
                while len(added) < 3 and not watching.done():
                    await asyncio.sleep(0.02)
            watching.cancel()
            await asyncio.wait([watching])
            assert watching.cancelled()
            requests.extend(seen)

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    logs.configure(verbose=True, as_json=False)
    root.addHandler(caplog.handler)
    caplog.handler.setLevel(logging.DEBUG)
    asyncio.run(story())
    assert sorted(added) == sorted([KEY, KEY, CATS])
    assert list(cache.jobs) == [CATS]
    assert len(built) == 3
    jobs = [each for each in requests if each.endswith(PLURAL)]
    assert len(jobs) == 2, "a list and a watch"
    assert {each.split()[0] for each in requests} == {"GET"}
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []
    own = [each.getMessage() for each in caplog.records if each.name == kopf_handlers.__name__]
    assert own == ["kopf starts to watch TailorPOJobs", "kopf has stopped to watch TailorPOJobs"]


def test_all_settings_exist() -> None:
    """kopf's settings take any attribute: one that a new version renames would have no effect."""
    settings = kopf.OperatorSettings()
    kopf_handlers.configure(settings, 30)
    for group in fields(settings):
        section = getattr(settings, group.name)
        if is_dataclass(section):
            unknown = vars(section).keys() - {each.name for each in fields(section)}
            assert {name for name in unknown if not name.startswith("_")} == set(), group.name


def test_the_storage_of_differences_has_the_methods_that_kopf_calls() -> None:
    base = kopf.DiffBaseStorage
    assert set(base.__abstractmethods__) <= {"build", "fetch", "store"}
    for name in ("build", "fetch", "store"):
        assert (
            inspect.signature(getattr(base, name)).parameters.keys()
            == inspect.signature(getattr(kopf_handlers.NoDiffs, name)).parameters.keys()
        )


@pytest.mark.parametrize("name", ["_core.reactor.running", "_core.reactor.orchestration", "_cogs.clients.watching"])
def test_the_loggers_that_are_silenced_are_those_that_kopf_uses(name: str) -> None:
    """See `logs`: of `_cogs.clients` all are silenced."""
    logs.configure(verbose=True, as_json=False)
    logger = importlib.import_module(f"kopf.{name}").logger
    assert logger is logging.getLogger(f"kopf.{name}")
    assert logger.getEffectiveLevel() == logging.CRITICAL
