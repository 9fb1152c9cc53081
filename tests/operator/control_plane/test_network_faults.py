"""Network faults between operator and API server: it recovers by itself, and does nothing twice."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.audit import Request
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import DEAF, HELD, ApiProxy, Asked
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator, Watched, job, last_words

RECOVERY = 60.0
"""Seconds after the end of a fault, or after the beginning of one that has no end."""
QUICK = ("--request-timeout-seconds=2",)


class Story:
    """Three jobs: one fails during a fault, one is suspended then, one is applied then."""

    def __init__(self, kubectl: Kubectl, driver: PodDriver, control_plane: ControlPlane) -> None:
        self._kubectl, self._driver, self._plane = kubectl, driver, control_plane
        self._mark = control_plane.audit.mark()
        driver.sigterm_exit = ExitCode.STOPPED
        self.failing, self.suspended = Watched(kubectl, driver, job()), Watched(kubectl, driver, job("birds"))
        self._pods = self.failing.run(1)
        self.suspended.run(1)

    def meanwhile(self) -> None:
        self._driver.end(self._pods[1], ExitCode.INTERNAL, last_words(ExitCode.INTERNAL, step=10))
        self._suspend(True)
        self.applied = Watched(self._kubectl, self._driver, job("cats"))

    def recovers(self) -> None:
        """Within a minute from now on."""

        def check() -> bool:
            ended = self.failing.attempt(1)
            assert ended.get("reason") == "InternalError", ended
            assert self.suspended.status["phase"] == "Suspended"
            assert {attempt_job["metadata"]["name"] for attempt_job in self.failing.attempt_jobs()} == {
                "animals-0001",
                "animals-0002",
            }
            assert [attempt_job["metadata"]["name"] for attempt_job in self.applied.attempt_jobs()] == ["cats-0001"]
            return True

        until(check, "what has happened meanwhile is acted on", RECOVERY)

    def ends(self) -> None:
        """All run to their ends, and nothing was done twice or left out."""
        self._suspend(False)
        for watched, attempt in ((self.failing, 2), (self.suspended, 2), (self.applied, 1)):
            watched.run(attempt)
            watched.finish(attempt)
        reasons = {
            watched.name: [(each["number"], each["reason"]) for each in watched.status["attempts"]]
            for watched in (self.failing, self.suspended, self.applied)
        }
        assert reasons == {
            "animals": [(1, "InternalError"), (2, "Completed")],
            "birds": [(1, "Suspended"), (2, "Completed")],
            "cats": [(1, "Completed")],
        }
        assert self.failing.status["failures"] == 1
        reported = Counter(reason for reason, _ in self.failing.events() if reason != "Unschedulable")
        assert reported == {"AttemptStarted": 2, "Running": 2, "InternalError": 1, "Succeeded": 1}
        assert self._created() == {"jobs": 5, "services": 1}

    def forget(self) -> None:
        """Makes room for the next story."""
        self._kubectl("delete", "tpj,events", "--all")
        until(lambda: not self._kubectl.json("get", "jobs,pods")["items"], "nothing is left of them")
        until(lambda: not self._kubectl("get", "services", "--output=name"), "nor their Service")

    def _suspend(self, value: bool) -> None:
        patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
        self._kubectl("patch", "tpj", "birds", "--type=merge", f"--patch={patch}")

    def _created(self) -> Counter[str]:
        made = (each for each in self._plane.audit.since(self._mark) if each.verb == "create" and each.code == 201)
        ours = (each for each in made if each.namespace == self._kubectl.namespace)
        return Counter(each.resource for each in ours if each.resource in ("jobs", "services"))


@pytest.fixture
def story(kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane, alone: Path) -> Callable[[], Story]:
    return lambda: Story(kubectl, pod_driver, control_plane)


def cut_off(operator: WarmOperator) -> None:
    """Waits until it is not ready; it stays alive, for a restart would not help."""

    def check() -> bool:
        status, text = operator.ask("/readyz")
        return status == 503 and text.startswith("no ")

    until(check, "it knows that it is cut off", 2 * RECOVERY)
    assert operator.ask("/healthz") == (200, "ok\n")


def reached(operator: WarmOperator) -> None:
    until(lambda: operator.ask("/readyz") == (200, "ok\n"), "it is ready", RECOVERY)


SOAK = [pytest.mark.soak, pytest.mark.timeout(600)]
SPEEDS = [pytest.param(QUICK, id="quick"), pytest.param((), id="defaults", marks=SOAK)]
"""The operator notices both by itself; with its defaults that takes up to a minute."""


@contextmanager
def far_away(user: Path, folder: Path, namespace: str, *arguments: str) -> Iterator[tuple[TcpProxy, WarmOperator]]:
    """An operator behind a proxy."""
    with (
        TcpProxy(user, folder) as proxy,
        WarmOperator(proxy.kubeconfig, folder / "log", f"--watch-namespace={namespace}", *arguments) as operator,
    ):
        yield proxy, operator


@pytest.mark.soak
def test_it_is_alive_while_requests_are_not_answered(kubectl: Kubectl, alone: Path, tmp_path: Path) -> None:
    """All tries of its first one together take longer than its loops may stand still."""
    with ApiProxy(alone, tmp_path) as proxy:
        proxy.rule = lambda asked: HELD
        with WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}") as operator:

            def waits() -> bool:
                alive.add(operator.ask("/healthz"))
                return any(line.startswith("waiting: ") for line in operator.logged())

            alive = {operator.ask("/healthz")}
            until(waits, "it says what it waits for", 4 * RECOVERY)
            assert alive == {(200, "ok\n")}


def test_it_starts_when_it_is_answered(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    quick = (f"--watch-namespace={kubectl.namespace}", "--request-timeout-seconds=1")
    with TcpProxy(alone, tmp_path) as proxy:
        proxy.silence(new=True)
        with WarmOperator(proxy.kubeconfig, tmp_path / "log", *quick) as one:
            until(lambda: any(line.startswith("waiting: ") for line in one.logged()), "it says what it waits for")
            assert one.ask("/readyz") == (503, "not started\n")
            assert one.ask("/healthz") == (200, "ok\n")
            proxy.heal()
            reached(one)
            Watched(kubectl, pod_driver, job()).run(1)


@pytest.mark.parametrize("works", [True, False], ids=["working", "starting"])
def test_it_stops_while_nobody_answers(kubectl: Kubectl, alone: Path, tmp_path: Path, works: bool) -> None:
    """Within the time that a kubelet gives it."""
    elect = ("--leader-elect", "--lease-namespace=tailorpo-system")
    with TcpProxy(alone, tmp_path) as proxy:
        if not works:
            proxy.silence(new=True)
        with WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}", *elect) as one:
            if works:
                until(lambda: one.ask("/readyz")[0] == 200 and "leading" in one.logged(), "it leads")
            else:
                until(lambda: one.port, "it has begun")
            proxy.silence(new=True)
            kubectl.apply(job())
            assert one.stop() == 0


def test_watches_that_begin_anew_list_nothing(
    kubectl: Kubectl, control_plane: ControlPlane, alone: Path, tmp_path: Path
) -> None:
    """With thousands of jobs that would cost too much."""
    begun = control_plane.audit.mark()
    with WarmOperator(alone, tmp_path / "log", f"--watch-namespace={kubectl.namespace}", *QUICK) as operator:
        reached(operator)

        def watches(mark: int) -> list[Request] | None:
            found = [each for each in control_plane.audit.since(mark) if each.user.endswith(":tailorpo-operator")]
            found = [each for each in found if each.namespace == kubectl.namespace]  # another operator may watch all
            kinds = Counter(each.resource for each in found if each.verb == "watch")
            return found if min(kinds[kind] for kind in ("jobs", "pods", PLURAL)) >= 2 else None

        until(lambda: watches(begun), "each list is over")
        mark = control_plane.audit.mark()
        assert {each.verb for each in until(lambda: watches(mark), "each watch has begun anew")} == {"watch"}


@pytest.mark.parametrize("arguments", SPEEDS)
def test_open_connections_that_say_nothing_any_more(
    kubectl: Kubectl, story: Callable[[], Story], alone: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Old connections stay open without any answer; new ones work."""
    with far_away(alone, tmp_path, kubectl.namespace, *arguments) as (proxy, operator):
        lived = story()
        proxy.silence(new=False)
        lived.meanwhile()
        lived.recovers()
        lived.ends()
        assert operator.ask("/readyz") == operator.ask("/healthz") == (200, "ok\n")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_watches_that_the_server_has_closed_and_the_operator_has_not(
    kubectl: Kubectl, story: Callable[[], Story], alone: Path, tmp_path: Path
) -> None:
    with far_away(alone, tmp_path, kubectl.namespace) as (proxy, _):
        lived = story()
        proxy.half_open()
        lived.meanwhile()
        lived.recovers()
        lived.ends()


@pytest.mark.parametrize("arguments", SPEEDS)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda proxy: proxy.silence(new=True), id="all bytes vanish"),
        pytest.param(TcpProxy.reset, id="reset"),
        pytest.param(TcpProxy.hold, id="stall"),
    ],
)
def test_faults_that_end(
    kubectl: Kubectl,
    story: Callable[[], Story],
    alone: Path,
    tmp_path: Path,
    fault: Callable[[TcpProxy], None],
    arguments: tuple[str, ...],
) -> None:
    with far_away(alone, tmp_path, kubectl.namespace, *arguments) as (proxy, operator):
        lived = story()
        fault(proxy)
        lived.meanwhile()
        cut_off(operator)
        proxy.heal()
        lived.recovers()
        reached(operator)
        lived.ends()


@pytest.mark.soak
def test_a_stall_of_half_a_minute(kubectl: Kubectl, story: Callable[[], Story], alone: Path, tmp_path: Path) -> None:
    with far_away(alone, tmp_path, kubectl.namespace) as (proxy, _):
        lived = story()
        proxy.hold()
        lived.meanwhile()
        time.sleep(30)
        proxy.heal()
        lived.recovers()
        lived.ends()


def test_a_version_that_the_server_does_not_know_any_more(
    kubectl: Kubectl, story: Callable[[], Story], control_plane: ControlPlane, alone: Path, tmp_path: Path
) -> None:
    """A restarted server has no history, so that no watch can resume from an old resource version."""
    groups = (("api/v1", "pods"), ("apis/batch/v1", "jobs"), (f"apis/{GROUP}/{VERSION}", PLURAL))
    paths = [f"/{group}/namespaces/{kubectl.namespace}/{plural}" for group, plural in groups]
    with far_away(alone, tmp_path, kubectl.namespace, *QUICK) as (proxy, _):
        lived = story()
        proxy.reset()
        versions = {path: json.loads(kubectl("get", "--raw", path))["metadata"]["resourceVersion"] for path in paths}
        lived.meanwhile()
        server = control_plane.servers["kube-apiserver"]
        server.stop()
        server.start()
        until(control_plane.ready, "the API server is back")
        for path, version in versions.items():  # the operator knows no later ones
            answer = kubectl("get", "--raw", f"{path}?watch=1&timeoutSeconds=1&resourceVersion={version}")
            assert json.loads(answer)["object"]["code"] == 410
        proxy.heal()
        lived.recovers()
        lived.ends()


@pytest.mark.parametrize("seconds", [0, pytest.param(300, marks=SOAK)])
def test_every_tenth_request_is_not_served(
    kubectl: Kubectl, story: Callable[[], Story], alone: Path, tmp_path: Path, seconds: float
) -> None:
    drawn, end, spoiled = random.Random(0), time.monotonic() + seconds, list[Asked]()

    def rule(asked: Asked) -> int:
        if drawn.random() >= 0.1:
            return 0
        spoiled.append(asked)
        return drawn.choice((500, 502, 503, 504))

    with ApiProxy(alone, tmp_path) as proxy:
        proxy.rule = rule
        with WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}"):
            while not spoiled or time.monotonic() < end:
                lived = story()
                lived.meanwhile()
                lived.recovers()
                lived.ends()
                lived.forget()


def test_answers_that_get_lost(kubectl: Kubectl, story: Callable[[], Story], alone: Path, tmp_path: Path) -> None:
    """Each write succeeds without an answer, so the operator repeats requests for what exists already."""
    reported = set[Asked]()

    def rule(asked: Asked) -> int:
        if not asked.writes or asked in reported:
            return 0
        reported.add(asked)
        return DEAF

    with ApiProxy(alone, tmp_path) as proxy:
        proxy.rule = rule
        with WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}"):
            lived = story()
            lived.meanwhile()
            lived.recovers()
            lived.ends()
    assert len(reported) > 20
