"""All workers or none: by Kubernetes' gang scheduling where it is enabled, by a queue, or one by one."""

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tailorpo_operator.api import naming
from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.control_plane import control_plane as run_control_plane
from tests.cluster.pods import PodDriver
from tests.cluster.servers import Options
from tests.cluster.waiting import until
from tests.operator import installed
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job, last_words

GATES = {"GenericWorkload": True, "WorkloadWithJob": True}
ONE_CPU = {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}


SMALL = {"cpu": "1", "memory": "8Gi", "pods": "20"}
"""A node for one of them."""


@pytest.fixture(scope="module")
def scheduling_gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the alpha features, and the operator."""
    folder = tmp_path_factory.mktemp("gangs")
    options = Options(feature_gates=GATES, runtime_config={"api/all": True})
    with run_control_plane(logs=folder, options=options) as plane:
        installed.serve(plane)
        with WarmOperator(installed.rights(plane), folder / "operator"):
            yield plane


@dataclass(frozen=True)
class Room:
    """Nodes for so many pods of one CPU, reserved for this test."""

    kubectl: Kubectl
    driver: PodDriver
    for_gangs: bool

    def grow(self, nodes: int) -> None:
        """Nodes for one pod each."""
        for _ in range(nodes):
            node = self.driver.add_node(f"{self.kubectl.namespace}-{secrets.token_hex(2)}", SMALL)
            self.kubectl("label", "node", node, f"room={self.kubectl.namespace}")

    def job(self, name: str, **spec: Any) -> Watched:
        template = {**ONE_CPU, "nodeSelector": {"room": self.kubectl.namespace}}
        return Watched(self.kubectl, self.driver, job(name, template=template, **spec))

    def living(self, name: str) -> dict[tuple[int, str], str | None]:
        """Nodes of a job's pods that have not ended, by attempt and name."""
        pods = self.kubectl.json("get", "pods", f"--selector={naming.JOB}={name}")["items"]
        return {
            (int(pod["metadata"]["labels"][naming.ATTEMPT]), pod["metadata"]["name"]): pod["spec"].get("nodeName")
            for pod in pods
            if pod["status"].get("phase") not in ("Succeeded", "Failed")
        }


@pytest.fixture(params=["by Kubernetes' gang scheduling", "one by one"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    """On a cluster with the features, and on one without."""
    if request.param == "one by one":
        request.getfixturevalue("operator")
        yield Room(request.getfixturevalue("kubectl"), request.getfixturevalue("pod_driver"), for_gangs=False)
        return
    plane: ControlPlane = request.getfixturevalue("scheduling_gangs")
    namespace = f"test-{secrets.token_hex(4)}"
    kubectl = plane.kubectl(namespace)
    kubectl("create", "namespace", namespace)
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    with plane.api(plane.user("pod-driver", ["system:masters"])) as api, PodDriver(api) as driver:
        yield Room(kubectl, driver, for_gangs=True)
        kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.mark.parametrize("room", ["by Kubernetes' gang scheduling"], indirect=True)
def test_a_gang_that_does_not_fit_binds_no_pod(room: Room) -> None:
    room.grow(1)
    watched = room.job("animals", scheduling={"gang": "Required"})

    def waits() -> bool:
        status, condition = watched.status, watched.condition("PodsReady")
        assert (status.get("phase"), condition["reason"]) == ("Pending", "Unschedulable"), status
        assert "Insufficient cpu" in status["message"] or "minCount (2)" in status["message"], status
        return True

    until(waits, "the reason is told")
    assert list(room.living("animals").values()) == [None, None]
    room.grow(1)
    watched.run(1)
    watched.finish(1)


def test_a_queue_where_no_kueue_is(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    watched = Watched(kubectl, pod_driver, job(scheduling={"queueName": "research"}))
    watched.run(1)
    assert "did not wait in its queue" in watched.status["message"]
    until(lambda: "NotQueued" in dict(watched.events()), "the event")
    [made] = watched.attempt_jobs()
    kubectl("patch", "job", made["metadata"]["name"], "--type=merge", '--patch={"spec": {"suspend": true}}')
    until(lambda: watched.ended(1)["reason"] == "Requeued", "a queue that holds it is obeyed")


def test_without_the_feature_auto_goes_on_and_says_so(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    node = pod_driver.add_node(f"{kubectl.namespace}-small", {"cpu": "1", "memory": "8Gi", "pods": "20"})
    template = {**ONE_CPU, "nodeSelector": {"kubernetes.io/hostname": node}}
    kubectl("label", "node", node, f"kubernetes.io/hostname={node}", "--overwrite")
    watched = Watched(kubectl, pod_driver, job(template=template))
    until(lambda: "schedules no gangs" in watched.status.get("message", ""), "it is told")
    placed = [pod["spec"].get("nodeName") for pod in kubectl.json("get", "pods")["items"]]
    assert sorted(placed, key=str) == [None, node]


def test_without_the_feature_required_waits_and_says_why(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    watched = Watched(kubectl, pod_driver, job(scheduling={"gang": "Required"}))
    until(lambda: watched.condition("PodsReady")["reason"] == "NoGangScheduling", "it waits")
    assert "spec.scheduling.gang: Required" in watched.status["message"]
    assert watched.status["phase"] == "Pending"
    assert kubectl.json("get", "jobs")["items"] == []
    kubectl("patch", "tpj", "animals", "--type=merge", '--patch={"spec": {"scheduling": {"gang": "Auto"}}}')
    watched.run(1)


def hold(kubectl: Kubectl, held: bool) -> None:
    """As Kueue does: by its webhook when a Job is created, by its controller later."""
    patch = json.dumps({"spec": {"suspend": held}})
    kubectl("patch", "job", "animals-0001", "--type=merge", f"--patch={patch}")


def test_a_queue_holds_a_gang_and_lets_it_go(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """Its own `suspend` is never ours to change; while it waits, no deadline passes."""
    template = {"nodeSelector": {"free": kubectl.namespace}}
    watched = Watched(kubectl, pod_driver, job(scheduling={"queueName": "research"}, template=template))
    until(lambda: watched.attempt_jobs(), "the Job is made")
    hold(kubectl, True)
    assert watched.attempt_jobs()[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"

    def queued() -> bool:
        assert watched.condition("PodsReady")["reason"] == "Queued", watched.status
        return True

    until(queued, "it is queued")
    short = json.dumps({"spec": {"runPolicy": {"startDeadlineSeconds": 1, "activeDeadlineSeconds": 2}}})
    kubectl("patch", "tpj", "animals", "--type=merge", f"--patch={short}")
    began = watched.attempt(1)["start"]
    waited = re.compile(rf'job_pending_seconds{{job_name="animals",job_namespace="{kubectl.namespace}"}} ([3-9]|\d\d)')
    until(lambda: waited.search(operator.ask("/metrics")[1]), "it is queued for longer than both deadlines")
    assert (watched.status["phase"], watched.attempt(1).get("reason")) == ("Pending", None)
    assert watched.attempt_jobs()[0]["spec"]["suspend"], "nobody fights the queue"
    relaxed = json.dumps({"spec": {"runPolicy": {"startDeadlineSeconds": 3600, "activeDeadlineSeconds": 3600}}})
    kubectl("patch", "tpj", "animals", "--type=merge", f"--patch={relaxed}")
    hold(kubectl, False)
    kubectl("label", "node", pod_driver.nodes[0], f"free={kubectl.namespace}")
    watched.run(1)
    assert watched.attempt(1)["start"] == began
    watched.finish(1)
    assert watched.status["restarts"] == 0


def test_a_queue_takes_the_place_of_a_running_gang_back(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    watched = Watched(kubectl, pod_driver, job(scheduling={"queueName": "research"}))
    watched.run(1)
    hold(kubectl, True)
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("Requeued", False)
    watched.run(2)


def priorities(kubectl: Kubectl) -> tuple[str, str]:
    """Names of a low and of a high one."""
    names = f"{kubectl.namespace}-low", f"{kubectl.namespace}-high"
    for name, value in zip(names, (1, 1000), strict=True):
        made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": value}
        kubectl.apply({**made, "metadata": {"name": name}})
    return names


@pytest.mark.parametrize("workers", [2, 1])
def test_a_gang_makes_way_for_a_higher_priority(room: Room, workers: int) -> None:
    """The real scheduler may preempt only one pod of two; then the whole gang is stopped, waits and restarts."""
    low_class, high_class = priorities(room.kubectl)
    room.driver.sigterm_exit, room.driver.last_words = ExitCode.STOPPED, last_words(ExitCode.STOPPED, step=40)
    room.grow(2)
    low = room.job("low", runPolicy={"backoffLimit": 0}, scheduling={"priorityClassName": low_class})
    low.run(1)
    high = room.job("high", workers=workers, scheduling={"priorityClassName": high_class})
    end = low.ended(1)
    assert (end["reason"], end["counted"], end["stepTo"]) == ("Preempted", False, 40)
    high.run(1)

    def waits() -> bool:
        status, condition = low.status, low.condition("PodsReady")
        assert (status.get("phase"), condition["reason"]) == ("Restarting", "Unschedulable"), status
        assert "Insufficient cpu" in status["message"] or "minCount (2)" in status["message"], status
        living = room.living("low")
        assert [attempt for attempt, _ in living] == [2, 2]  # no part of a gang remains
        assert len([node for node in living.values() if node]) == (0 if room.for_gangs else 2 - workers)
        return True

    until(waits, "the low gang waits for room, as a whole")
    assert high.phase("Running")["restarts"] == 0
    high.finish(1)
    low.run(2)
    assert low.attempt(2)["stepFrom"] == 40
    low.finish(2)
    status = low.status
    assert [(each["reason"], each["counted"]) for each in status["attempts"]] == [
        ("Preempted", False),
        ("Completed", False),
    ]
    assert (status["restarts"], status["failures"]) == (1, 0)
    reported = Counter(reason for reason, _ in low.events() if reason != "Unschedulable")
    assert reported == {"AttemptStarted": 2, "Running": 2, "Preempted": 1, "Succeeded": 1}
