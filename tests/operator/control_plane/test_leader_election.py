"""Two replicas: one leads, the other takes over when it dies; one that was paused for long writes nothing any more."""

import asyncio
import contextlib
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tailorpo_operator.kube import leader_election
from tailorpo_operator.kube.transport import RefusedError
from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import HELD, ApiProxy, Asked
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator, Watched, job, last_words

ELECT = ("--leader-elect", "--lease-namespace=tailorpo-system")


@pytest.fixture
def no_lease(kubectl: Kubectl) -> None:
    kubectl("delete", "lease", "tailorpo-operator", "--namespace=tailorpo-system", "--ignore-not-found")


@contextmanager
def replicas(user: Path, folder: Path, first: Path | None = None) -> Iterator[tuple[WarmOperator, WarmOperator]]:
    """A leader, and a replica that does not lead. first: the kubeconfig of the leader."""
    with WarmOperator(first or user, folder / "one", *ELECT) as one:
        until(lambda: "leading" in one.logged(), "the first leads")
        with WarmOperator(user, folder / "other", *ELECT) as other:
            for each in (one, other):
                until(lambda each=each: each.ask("/readyz")[0] == 200, "both have read everything")  # type: ignore[misc]
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
        assert leading(one, other) == (1, 0)
        for each in (one, other):
            assert each.ask("/readyz") == each.ask("/healthz") == (200, "ok\n")
        one.kill()
        pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
        assert watched.ended(1)["reason"] == "Unavailable"
        assert leads(other)
        watched.run(2)
        watched.finish(2)
        until(lambda: leading(other) == (1,), "its metrics say so")
        assert other.ask("/readyz") == other.ask("/healthz") == (200, "ok\n")


def test_a_graceful_stop_gives_the_lease_back(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, no_lease: None, tmp_path: Path
) -> None:
    with WarmOperator(alone, tmp_path / "log", *ELECT) as one:
        until(lambda: leads(one), "it leads")
        assert one.stop() == 0
    assert not lease(kubectl).get("holderIdentity")


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
        until(lambda: deposed(one), "the first has woken up")
        watched.run(2)
        watched.finish(2)
        assert [asked for asked in proxy.seen[before:] if asked.writes and not _of_lease(asked)] == []


def test_a_leader_that_is_cut_off_is_followed_and_does_not_come_back(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, no_lease: None, tmp_path: Path
) -> None:
    with (
        ApiProxy(alone, tmp_path) as with_progress,
        TcpProxy(with_progress.kubeconfig, tmp_path) as cutting,
        replicas(alone, tmp_path, cutting.kubeconfig) as (one, other),
    ):
        watched = Watched(kubectl, pod_driver, job())
        pods = watched.run(1)
        cutting.silence(new=True)
        pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
        watched.ended(1)
        assert deposed(one)
        before = len(with_progress.seen)
        cutting.heal()
        until(
            lambda: any(_of_lease(asked) for asked in with_progress.seen[before:]), "the first looks at the Lease again"
        )
        watched.run(2)
        watched.finish(2)
        assert [asked for asked in with_progress.seen[before:] if asked.writes] == []
        assert leading(one, other) == (0, 1)


def test_dead_connections_cost_nobody_the_lease(kubectl: Kubectl, alone: Path, no_lease: None, tmp_path: Path) -> None:
    with TcpProxy(alone, tmp_path) as proxy, replicas(alone, tmp_path, proxy.kubeconfig) as (one, other):
        before = lease(kubectl)
        proxy.silence(new=False)
        until(lambda: lease(kubectl)["renewTime"] > before["renewTime"], "it renews by a new connection")
        assert lease(kubectl)["holderIdentity"] == before["holderIdentity"]
        assert not deposed(one)
        assert leading(one, other) == (1, 0)


def test_a_write_that_arrives_when_another_leads_does_no_harm(
    kubectl: Kubectl,
    pod_driver: PodDriver,
    control_plane: ControlPlane,
    alone: Path,
    no_lease: None,
    tmp_path: Path,
) -> None:
    """A request in flight cannot be cancelled: here the creation of an attempt Job whose attempt has ended."""
    with ApiProxy(alone, tmp_path) as proxy, replicas(alone, tmp_path, proxy.kubeconfig) as (one, _):
        proxy.rule = lambda asked: HELD if asked.creates == "animals-0002" else 0
        mark = control_plane.audit.mark()
        watched = Watched(kubectl, pod_driver, job())
        for attempt in (1, 2, 3):
            pods = watched.run(attempt)
            pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
            if attempt == 1:
                until(lambda: proxy.held, "the next gang is on its way")
                one.signal(signal.SIGSTOP)
        watched.run(4)
        until(lambda: names(watched) == ["animals-0003", "animals-0004"], "the second is gone")
        proxy.release()

        def made() -> Counter[str]:
            requests = (each for each in control_plane.audit.since(mark) if each.namespace == kubectl.namespace)
            return Counter(each.verb for each in requests if each.resource == "jobs" and each.code in (200, 201))

        until(lambda: made()["create"] == 5, "the second is there again")
        until(lambda: names(watched) == ["animals-0003", "animals-0004"], "and gone again")
        watched.finish(4)
        assert [each["number"] for each in watched.status["attempts"]] == [1, 2, 3, 4]


def deposed(operator: WarmOperator) -> bool:
    return any("not leading any more" in line for line in operator.logged())


def leading(*operators: WarmOperator) -> tuple[float, ...]:
    """What their metrics say."""
    found = (re.search(r"^tailorpo_operator_leading (\S+)$", each.ask("/metrics")[1], re.M) for each in operators)
    return tuple(float(match[1]) for match in found if match)


def lease(kubectl: Kubectl) -> dict[str, Any]:
    found: dict[str, Any] = kubectl.json("get", "lease", "tailorpo-operator", "--namespace=tailorpo-system")["spec"]
    return found


def names(watched: Watched) -> list[str]:
    return sorted(attempt_job["metadata"]["name"] for attempt_job in watched.attempt_jobs())


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
    """It skipped work while it did not lead; an elected operator therefore reconciles all jobs."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(leader_election, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(leader_election, "RETRY_PERIOD", 0)

    async def pause() -> None:
        transport: Any = Leases()
        begun: asyncio.Queue[None] = asyncio.Queue()
        candidate = leader_election.LeaderElection(transport, "team", "lease", "me")
        running = asyncio.create_task(candidate.run(lambda: begun.put_nowait(None)))
        await asyncio.wait_for(begun.get(), 10)
        clock.now += 2 * leader_election.RENEW_DEADLINE
        await asyncio.wait_for(begun.get(), 10)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(pause())
