"""A list, then watches from its resource version; and what follows when one of them fails."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from typing import Any

import pytest

from tailorpo_operator.api.naming import Key
from tailorpo_operator.kube import reflector
from tailorpo_operator.kube.reflector import Object, Reflector
from tailorpo_operator.kube.transport import RefusedError, UnreachableError

Events = list[tuple[str, Mapping[str, Any]] | Exception]


def event(version: int, kind: str = "MODIFIED") -> tuple[str, Mapping[str, Any]]:
    return kind, {"metadata": {"resourceVersion": str(version)}}


def run(*watches: Events, on_contact: Callable[[], None] = lambda: None) -> list[str]:
    """The requests until the last of these watches has ended. The lists have the versions 10, 20, …"""
    asked = list[str]()

    async def story() -> None:
        over = asyncio.Event()

        async def list_(use: object) -> int:
            asked.append("list")
            return 10 * asked.count("list")

        async def watch(version: int) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
            events = watches[sum(each != "list" for each in asked)]
            asked.append(f"watch from {version}")
            for each in events:
                if isinstance(each, Exception):
                    raise each
                yield each
            if events is watches[-1]:
                over.set()
                await asyncio.Event().wait()

        reflecting = Reflector(
            "pods",
            list_,
            watch,
            put=lambda raw: None,
            drop=lambda raw: None,
            drop_unlisted=lambda uids, version: (),
            on_change=lambda key: None,
            on_contact=on_contact,
        )
        running = asyncio.create_task(reflecting.run())
        await over.wait()
        running.cancel()

    asyncio.run(story())
    return asked


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", 0.0)


def test_a_watch_goes_on_where_the_last_one_has_ended() -> None:
    assert run([event(11), event(15, "BOOKMARK")], []) == ["list", "watch from 10", "watch from 15"]


@pytest.mark.parametrize(
    "problem", [UnreachableError("reset"), RefusedError(503, "", "busy"), RefusedError(429, "", "busy")]
)
def test_a_server_that_is_away_or_busy_is_not_asked_for_a_list(problem: Exception) -> None:
    """All operators would list at once, when the server can bear it least."""
    assert run([event(15), problem], [problem], []) == ["list", "watch from 10", "watch from 15", "watch from 15"]


@pytest.mark.parametrize("status", [410, 403, 500])
def test_what_a_watch_cannot_go_on_from_is_listed(status: int) -> None:
    refusal = ("ERROR", {"code": status, "reason": "Any", "message": "no"})
    assert run([event(15), refusal], []) == ["list", "watch from 10", "list", "watch from 20"]
    assert run([RefusedError(status, "Any", "no")], []) == ["list", "watch from 10", "list", "watch from 20"]


def test_who_may_list_and_not_watch_says_so_once_and_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise it would look ready, and list everything each second for ever."""
    pauses, contacts = list[float](), list[int]()
    monkeypatch.setattr(reflector, "BACKOFF", 1.0)
    monkeypatch.setattr(random, "uniform", lambda least, most: 1.0)
    sleep = asyncio.sleep

    async def paused(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", paused)
    refused: Events = [RefusedError(403, "Forbidden", 'pods is forbidden: User "operator" cannot watch')]
    run(*[refused] * 7, [event(75), *refused], [], on_contact=lambda: contacts.append(1))
    assert pauses == [1, 2, 4, 8, 16, 16, 16, 1]
    assert len(contacts) == 2 + 1 + 1  # two lists; the event; the list after it
    message = 'watching pods: pods is forbidden: User "operator" cannot watch: see manifests/base/rbac.yaml'
    assert caplog.messages == [message, message]


def test_a_list_is_taken_one_by_one_and_what_it_does_not_have_is_dropped() -> None:
    put, dropped, changed = list[str](), list[str](), list[Key]()

    async def list_(use: Callable[[Object], None]) -> int:
        for name in ("a", "b", "strange"):
            use({"metadata": {"uid": name, "name": name}})
        return 7

    async def watch(version: int) -> AsyncIterator[tuple[str, Object]]:
        await asyncio.Event().wait()
        yield "", {}

    def take(raw: Object) -> Key | None:
        name = raw["metadata"]["name"]
        put.append(name)
        return None if name == "strange" else Key("team", name)

    def drop_unlisted(uids: Set[str], version: int) -> Iterable[Key]:
        assert version == 7
        dropped.extend(each for each in ("b", "gone") if each not in uids)
        return [Key("team", each) for each in dropped]

    async def story() -> None:
        reflecting = Reflector(
            "pods",
            list_,
            watch,
            put=take,
            drop=take,
            drop_unlisted=drop_unlisted,
            on_change=changed.append,
            on_contact=lambda: None,
        )
        running = asyncio.create_task(reflecting.run())
        await reflecting.synced.wait()
        running.cancel()

    asyncio.run(story())
    assert (put, dropped) == (["a", "b", "strange"], ["gone"])
    assert changed == [Key("team", name) for name in ("a", "b", "gone")]
