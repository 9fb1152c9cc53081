"""A list, then a watch from there on; and what follows when one of them fails."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from typing import Any

import pytest

from tailorpo_operator.kube import reflector
from tailorpo_operator.kube.cache import Key
from tailorpo_operator.kube.reflector import Object, Reflector
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

Happens = list[tuple[str, Mapping[str, Any]] | Exception]


def seen(version: int, kind: str = "MODIFIED") -> tuple[str, Mapping[str, Any]]:
    return kind, {"metadata": {"resourceVersion": str(version)}}


def run(*watches: Happens, heard: Callable[[], None] = lambda: None) -> list[str]:
    """What is asked for, until the last of these watches has ended. Lists are of version 10, 20, …"""
    asked = list[str]()

    async def story() -> None:
        over = asyncio.Event()

        async def list_(use: object) -> int:
            asked.append("list")
            return 10 * asked.count("list")

        async def watch(version: int) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
            happens = watches[sum(each != "list" for each in asked)]
            asked.append(f"watch from {version}")
            for each in happens:
                if isinstance(each, Exception):
                    raise each
                yield each
            if happens is watches[-1]:
                over.set()
                await asyncio.Event().wait()

        one = Reflector(
            "pods",
            list_,
            watch,
            put=lambda tree: None,
            drop=lambda tree: None,
            keep=lambda uids, version: (),
            news=lambda key: None,
            heard=heard,
        )
        running = asyncio.create_task(one.run())
        await over.wait()
        running.cancel()

    asyncio.run(story())
    return asked


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "PAUSE", 0.0)


def test_a_watch_goes_on_where_the_last_one_has_ended() -> None:
    assert run([seen(11), seen(15, "BOOKMARK")], []) == ["list", "watch from 10", "watch from 15"]


@pytest.mark.parametrize(
    "problem", [UnreachableError("reset"), RefusedError(503, "", "busy"), RefusedError(429, "", "busy")]
)
def test_a_server_that_is_away_or_busy_is_not_asked_for_a_list(problem: Exception) -> None:
    """It would be asked by everybody at once, when it can bear that least."""
    assert run([seen(15), problem], [problem], []) == ["list", "watch from 10", "watch from 15", "watch from 15"]


@pytest.mark.parametrize("status", [410, 403, 500])
def test_what_a_watch_cannot_go_on_from_is_listed(status: int) -> None:
    refusal = ("ERROR", {"code": status, "reason": "Any", "message": "no"})
    assert run([seen(15), refusal], []) == ["list", "watch from 10", "list", "watch from 20"]
    assert run([RefusedError(status, "Any", "no")], []) == ["list", "watch from 10", "list", "watch from 20"]


def test_who_may_list_and_not_watch_says_so_once_and_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would look ready, and list everything each second for ever."""
    pauses, heard = list[float](), list[int]()
    monkeypatch.setattr(reflector, "PAUSE", 1.0)
    monkeypatch.setattr(random, "uniform", lambda least, most: 1.0)
    sleep = asyncio.sleep

    async def paused(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", paused)
    refused: Happens = [RefusedError(403, "Forbidden", 'pods is forbidden: User "operator" cannot watch')]
    run(*[refused] * 7, [seen(75), *refused], [], heard=lambda: heard.append(1))
    assert pauses == [1, 2, 4, 8, 16, 16, 16, 1]
    assert len(heard) == 2 + 1 + 1  # two lists; the event; the list after it
    words = 'watching pods: pods is forbidden: User "operator" cannot watch: see manifests/rbac.yaml'
    assert caplog.messages == [words, words]


def test_a_list_is_taken_one_by_one_and_what_it_does_not_have_is_dropped() -> None:
    put, dropped, told = list[str](), list[str](), list[Key]()

    async def list_(use: Callable[[Object], None]) -> int:
        for name in ("a", "b", "strange"):
            use({"metadata": {"uid": name, "name": name}})
        return 7

    async def watch(version: int) -> AsyncIterator[tuple[str, Object]]:
        await asyncio.Event().wait()
        yield "", {}

    def take(tree: Object) -> Key | None:
        name = tree["metadata"]["name"]
        put.append(name)
        return None if name == "strange" else Key("team", name)

    def keep(uids: Set[str], version: int) -> Iterable[Key]:
        assert version == 7
        dropped.extend(each for each in ("b", "gone") if each not in uids)
        return [Key("team", each) for each in dropped]

    async def story() -> None:
        one = Reflector("pods", list_, watch, put=take, drop=take, keep=keep, news=told.append, heard=lambda: None)
        running = asyncio.create_task(one.run())
        await one.listed.wait()
        running.cancel()

    asyncio.run(story())
    assert (put, dropped) == (["a", "b", "strange"], ["gone"])
    assert told == [Key("team", name) for name in ("a", "b", "gone")]
