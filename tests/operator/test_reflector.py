"""A list, then a watch from there on; and what follows when one of them fails."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest

from tailorpo_operator import reflector
from tailorpo_operator.reflector import Reflector
from tailorpo_operator.store import Key
from tailorpo_operator.wire import AwayError, RefusedError

Happens = list[tuple[str, Mapping[str, Any]] | Exception]


def seen(version: int, kind: str = "MODIFIED") -> tuple[str, Mapping[str, Any]]:
    return kind, {"metadata": {"resourceVersion": str(version)}}


def run(*watches: Happens) -> list[str]:
    """What is asked for, until the last of these watches has ended. Lists are of version 10, 20, …"""
    asked = list[str]()

    async def story() -> None:
        over = asyncio.Event()

        async def list_() -> tuple[list[Mapping[str, Any]], int]:
            asked.append("list")
            return [], 10 * asked.count("list")

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

        def replace(items: Iterable[Mapping[str, Any]], version: int) -> Iterable[Key]:
            return ()

        one = Reflector(
            "pods",
            list_,
            watch,
            put=lambda tree: None,
            drop=lambda tree: None,
            replace=replace,
            news=lambda key: None,
            heard=lambda: None,
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


@pytest.mark.parametrize("problem", [AwayError("reset"), RefusedError(503, "", "busy"), RefusedError(429, "", "busy")])
def test_a_server_that_is_away_or_busy_is_not_asked_for_a_list(problem: Exception) -> None:
    """It would be asked by everybody at once, when it can bear that least."""
    assert run([seen(15), problem], [problem], []) == ["list", "watch from 10", "watch from 15", "watch from 15"]


@pytest.mark.parametrize("status", [410, 403, 500])
def test_what_a_watch_cannot_go_on_from_is_listed(status: int) -> None:
    refusal = ("ERROR", {"code": status, "reason": "Any", "message": "no"})
    assert run([seen(15), refusal], []) == ["list", "watch from 10", "list", "watch from 20"]
    assert run([RefusedError(status, "Any", "no")], []) == ["list", "watch from 10", "list", "watch from 20"]
