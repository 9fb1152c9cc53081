"""Liveness is freshness: a process that has stopped to do its work is not alive. And what a scraper is answered."""

import asyncio
import gzip
import socket
import threading
from collections.abc import Iterable

import aiohttp
import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from prometheus_client.registry import Collector

from tailorpo_operator.controller.health import Deadlines, serving


def test_what_is_left_undone_is_named() -> None:
    now = 100.0
    deadlines = Deadlines(lambda: now, turn=10, list=50)
    assert deadlines.overdue() is None
    now = 111.0
    assert deadlines.overdue() == "no turn for 11 s"
    deadlines.reset("turn")
    assert deadlines.overdue() is None
    now = 155.0
    deadlines.reset("turn")
    assert deadlines.overdue() == "no list for 55 s"


async def scrape(port: int, **headers: str) -> tuple[str, bytes]:
    """Content type and body, as they came."""
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("Accept", "Accept-Encoding")) as session:
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        async with session.get(f"http://127.0.0.1:{port}/metrics", headers=given) as answer:
            assert answer.status == 200
            return answer.headers["Content-Type"], await answer.read()


def test_a_scraper_chooses_the_format() -> None:
    async def answers() -> list[tuple[str, bytes]]:
        async with serving("127.0.0.1", 0, lambda: None, lambda: None) as port:
            return [
                await scrape(port),
                await scrape(port, Accept="application/openmetrics-text; version=1.0.0", Accept_Encoding="gzip"),
            ]

    (kind, text), (other_kind, zipped) = asyncio.run(answers())
    assert kind.startswith("text/plain; version=0.0.4")
    assert "process_start_time_seconds" in {family.name for family in classic(text.decode())}
    assert other_kind.startswith("application/openmetrics-text; version=1.0.0")
    assert "process_start_time_seconds" in {family.name for family in openmetrics(gzip.decompress(zipped).decode())}


@pytest.mark.parametrize("dual", [True, False])
def test_both_families(monkeypatch: pytest.MonkeyPatch, dual: bool) -> None:
    """A kubelet probes a pod of a cluster with IPv6 alone by IPv6; a kernel may also lack it."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: dual)

    async def statuses() -> list[int]:
        async with (
            serving("::", 0, lambda: None, lambda: None) as port,
            aiohttp.ClientSession() as session,
        ):
            hosts = ["127.0.0.1", *(["[::1]"] if dual else [])]
            return [(await session.get(f"http://{host}:{port}/readyz")).status for host in hosts]

    assert set(asyncio.run(statuses())) == {200}


def test_a_slow_scrape_does_not_block_the_event_loop(request: pytest.FixtureRequest) -> None:
    """The loop renews the Lease. Here a scrape lasts until the loop has had its turn."""
    turn, threads = threading.Event(), list[threading.Thread]()

    class Slow(Collector):
        def collect(self) -> Iterable[Metric]:
            threads.append(threading.current_thread())
            assert turn.wait(60)
            return ()

    slow = Slow()
    turn.set()
    REGISTRY.register(slow)  # which asks the collector once
    request.addfinalizer(lambda: REGISTRY.unregister(slow))
    turn.clear()
    threads.clear()

    async def story() -> None:
        async with serving("127.0.0.1", 0, lambda: None, lambda: None) as port:
            scrapes = [asyncio.create_task(scrape(port)) for _ in range(3)]
            while not threads:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert len(threads) == 1, "one after the other"
            turn.set()
            await asyncio.gather(*scrapes)

    asyncio.run(story())
    assert len(threads) == 3
    assert threading.main_thread() not in threads
