"""Two replicas: one acts, the other stands by and takes over; one that was paused for long writes nothing any more."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tailorpo_operator import election
from tailorpo_operator.wire import RefusedError
from tailorpo_trainer.exits import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import ApiProxy, Asked
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator, Watched, job, last_words

ELECT = ("--leader-elect", "--lease-namespace=tailorpo-system")


@pytest.fixture
def no_lease(kubectl: Kubectl) -> None:
    kubectl("delete", "lease", "tailorpo-operator", "--namespace=tailorpo-system", "--ignore-not-found")


@contextmanager
def replicas(user: Path, folder: Path, first: Path | None = None) -> Iterator[tuple[WarmOperator, WarmOperator]]:
    """A leader, and one that stands by. first: the kubeconfig of the leader."""
    with WarmOperator(first or user, folder / "one", *ELECT) as one:
        until(lambda: "leading" in one.logged(), "the first leads")
        with WarmOperator(user, folder / "other", *ELECT) as other:
            until(lambda: other.logged(), "the second stands by")
            yield one, other


def leads(operator: WarmOperator) -> bool:
    return "leading" in operator.logged()


def test_one_acts_and_the_other_takes_over_when_it_dies(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, no_lease: None, tmp_path: Path
) -> None:
    with replicas(alone, tmp_path) as (one, other):
        watched = Watched(kubectl, pod_driver, job())
        pods = watched.run(1)
        assert not leads(other)
        one.kill()
        pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
        assert watched.ended(1)["reason"] == "Unavailable"
        assert leads(other)
        watched.run(2)
        watched.finish(2)


def test_a_graceful_stop_gives_the_lease_back(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, no_lease: None, tmp_path: Path
) -> None:
    with WarmOperator(alone, tmp_path / "log", *ELECT) as one:
        until(lambda: leads(one), "it leads")
        assert one.stop() == 0
    lease = kubectl.json("get", "lease", "tailorpo-operator", "--namespace=tailorpo-system")
    assert not lease["spec"].get("holderIdentity")


def test_one_that_was_paused_past_its_lease_writes_nothing_any_more(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, no_lease: None, tmp_path: Path
) -> None:
    with ApiProxy(alone, tmp_path) as proxy, replicas(alone, tmp_path, proxy.kubeconfig) as (one, other):
        watched = Watched(kubectl, pod_driver, job())
        pods = watched.run(1)
        one.signal(signal.SIGSTOP)
        pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
        watched.ended(1)
        until(lambda: leads(other), "the second leads")
        before = len(proxy.seen)
        one.signal(signal.SIGCONT)
        until(lambda: any("not leading any more" in line for line in one.logged()), "the first has woken up")
        watched.run(2)
        watched.finish(2)
        assert [asked for asked in proxy.seen[before:] if asked.writes and not _of_lease(asked)] == []


def _of_lease(asked: Asked) -> bool:
    return "/leases" in asked.path


class Leases:
    """An API server that has nothing but one lease."""

    def __init__(self) -> None:
        self._lease: dict[str, Any] | None = None

    async def request(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        if verb == "get" and self._lease is None:
            raise RefusedError(404, "NotFound", path)
        if verb != "get":
            version = int(self._lease["metadata"]["resourceVersion"]) + 1 if self._lease else 1
            self._lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(version)}}
        assert self._lease is not None
        return self._lease


def test_one_that_was_paused_and_leads_again_is_elected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be done while it did not lead was left, for whoever is elected looks at all jobs."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(election, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(election, "RETRY_SECONDS", 0)

    async def pause() -> None:
        wire: Any = Leases()
        begun: asyncio.Queue[None] = asyncio.Queue()
        candidate = election.Election(wire, "team", "lease", "me")
        running = asyncio.create_task(candidate.run(lambda: begun.put_nowait(None)))
        await asyncio.wait_for(begun.get(), 10)
        clock.now += 2 * election.DEADLINE_SECONDS
        await asyncio.wait_for(begun.get(), 10)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(pause())
