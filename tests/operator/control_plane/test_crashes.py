"""The operator may die at any moment, be there twice, and lose the API server: nothing is lost, nothing made twice."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import DROP, ApiProxy, Asked
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job, last_words


def live(kubectl: Kubectl, driver: PodDriver) -> Watched:
    """A life with one restart and one suspension."""
    driver.sigterm_exit = ExitCode.STOPPED
    watched = Watched(kubectl, driver, job())
    pods = watched.run(1)
    driver.end(pods[1], ExitCode.INTERNAL, last_words(ExitCode.INTERNAL, step=10))
    watched.run(2)
    suspend(watched, True)
    watched.phase("Suspended")
    suspend(watched, False)
    watched.run(3)
    watched.finish(3)
    until(lambda: len(watched.attempt_jobs()) == 1, "the gangs before the last ones are gone")
    return watched


def suspend(watched: Watched, value: bool) -> None:
    patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
    watched.kubectl("patch", "tpj", watched.name, "--type=merge", f"--patch={patch}")


def story(watched: Watched) -> dict[str, Any]:
    """What a life leaves behind that does not depend on when things happened."""
    status = watched.status
    return {
        "phase": status["phase"],
        "message": status["message"],
        "counts": (status["restarts"], status["failures"]),
        "attempts": [
            {key: value for key, value in attempt.items() if key not in ("start", "ready", "end", "node", "message")}
            for attempt in status["attempts"]
        ],
        "conditions": {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]},
        "progress": status["progress"]["steps"],
        "events": Counter(reason for reason, _ in watched.events() if reason != "Unschedulable"),
        "gangs": sorted(attempt_job["metadata"]["name"] for attempt_job in watched.attempt_jobs()),
    }


EXPECTED = {
    "phase": "Succeeded",
    "message": "done: 100/100 iterations in 3 attempts",
    "counts": (2, 1),
    "attempts": [
        {"number": 1, "reason": "InternalError", "counted": True, "exitCode": 70, "rank": 1, "stepTo": 10},
        {"number": 2, "reason": "Suspended", "counted": False, "stepFrom": 10, "stepTo": 10},
        {"number": 3, "reason": "Completed", "counted": False, "exitCode": 0, "rank": 0, "stepFrom": 10, "stepTo": 100},
    ],
    "conditions": {
        "Suspended": ("False", "NotSuspended"),
        "PodsReady": ("False", "Succeeded"),
        "Running": ("False", "Succeeded"),
        "Restarting": ("False", "Succeeded"),
        "Succeeded": ("True", "Completed"),
    },
    "progress": "100/100",
    "events": Counter(AttemptStarted=3, Running=3, InternalError=1, Suspended=1, Resumed=1, Succeeded=1),
    "gangs": ["animals-0003"],
}


@contextmanager
def most_living_gangs(watched_namespace: str, control_plane: ControlPlane) -> Iterator[list[int]]:
    """The numbers of gangs with living pods that were seen together, all the time."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        kubectl = control_plane.kubectl(watched_namespace)
        while not over.is_set():
            pods = kubectl.json("get", "pods", "--selector=tailorpo.dev/job")["items"]
            living = [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
            seen.append(len({pod["metadata"]["labels"]["tailorpo.dev/attempt"] for pod in living}))
            over.wait(0.2)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def created(control_plane: ControlPlane, mark: int, namespace: str) -> Counter[str]:
    """How often each gang and Service was made."""
    requests = control_plane.audit.since(mark)
    return Counter(
        each.resource
        for each in requests
        if each.verb == "create"
        and each.code == 201
        and each.namespace == namespace
        and each.resource in ("jobs", "services")
    )


@pytest.mark.timeout(600)
def test_killed_before_each_of_its_writes(
    kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane, alone: Path, tmp_path: Path
) -> None:
    """After each start one new write gets through; at the next the process is killed, before it arrives."""
    with ApiProxy(alone, tmp_path) as proxy:
        arguments = (f"--watch-namespace={kubectl.namespace}",)
        operator = WarmOperator(proxy.kubeconfig, tmp_path / "log", *arguments)
        written, killed = threading.Semaphore(1), threading.Event()
        made: set[tuple[str, str]] = set()
        passed: list[Asked] = []

        def rule(asked: Asked) -> int:
            if killed.is_set():
                return DROP
            name = asked.creates
            again = name is not None and (asked.path, name) in made  # what is there already is made in vain
            if not asked.writes or again or written.acquire(blocking=False):
                if name is not None:
                    made.add((asked.path, name))
                if asked.writes and not again:
                    passed.append(asked)
                return 0
            killed.set()
            return DROP

        over = threading.Event()

        def restart() -> None:
            while not over.is_set():
                if killed.wait(0.05):
                    operator.kill()
                    while written.acquire(blocking=False):
                        pass
                    written.release()
                    killed.clear()
                    operator.start()

        mark = control_plane.audit.mark()
        proxy.rule = rule
        with operator, most_living_gangs(kubectl.namespace, control_plane) as together:
            thread = threading.Thread(target=restart, daemon=True)
            thread.start()
            try:
                watched = live(kubectl, pod_driver)
            finally:
                over.set()
                thread.join()
    assert len(passed) >= 15, passed
    assert operator.starts >= len(passed)  # not two without a death in between
    assert story(watched) == EXPECTED
    assert created(control_plane, mark, kubectl.namespace) == {"jobs": 3, "services": 1}
    assert max(together) == 1


def test_two_at_once(
    kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane, alone: Path, tmp_path: Path
) -> None:
    """Without any election between them."""
    arguments = (f"--watch-namespace={kubectl.namespace}",)
    mark = control_plane.audit.mark()
    with (
        WarmOperator(alone, tmp_path / "one", *arguments),
        WarmOperator(alone, tmp_path / "other", *arguments),
        most_living_gangs(kubectl.namespace, control_plane) as together,
    ):
        watched = live(kubectl, pod_driver)
    assert story(watched) == EXPECTED
    assert created(control_plane, mark, kubectl.namespace) == {"jobs": 3, "services": 1}
    assert max(together) == 1


def test_every_fifth_request_fails(
    kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane, alone: Path, tmp_path: Path
) -> None:
    """Connections that break before the server was asked, and servers that are busy."""
    drawn = random.Random(0)
    mark = control_plane.audit.mark()
    with (
        ApiProxy(alone, tmp_path) as proxy,
        WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}"),
    ):
        proxy.rule = lambda asked: drawn.choice((DROP, 429, 500, 503)) if drawn.random() < 0.2 else 0
        watched = live(kubectl, pod_driver)
    assert story(watched) == EXPECTED
    assert created(control_plane, mark, kubectl.namespace) == {"jobs": 3, "services": 1}


def test_an_undisturbed_life(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    """What the other lives are compared with."""
    with WarmOperator(alone, tmp_path / "log", f"--watch-namespace={kubectl.namespace}"):
        assert story(live(kubectl, pod_driver)) == EXPECTED


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=pytest.mark.soak)])
def test_the_api_server_goes_away(
    kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane, operator: OperatorProcess, seconds: int
) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    server = control_plane.servers["kube-apiserver"]
    server.stop()
    time.sleep(seconds)
    server.start()
    until(lambda: watched.get(), "the API server is back")
    pods = watched.pods(1)
    pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
    until(lambda: watched.attempt(1).get("reason") == "Unavailable", "the operator has seen it")
    watched.timeout += seconds  # Kubernetes' own controllers, which stop the others, wait for longer each time
    watched.ended(1)
    assert operator.running
    watched.run(2)
    watched.finish(2)
