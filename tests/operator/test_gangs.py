"""All workers or none: by Kubernetes' own gang scheduling where it is on, by a queue, or one by one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.control_plane import control_plane as run_control_plane
from tests.cluster.pods import PodDriver
from tests.cluster.servers import Options
from tests.cluster.waiting import until
from tests.operator import installed
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job

GATES = {"GenericWorkload": True, "WorkloadWithJob": True}
ONE_CPU = {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}


@pytest.fixture(scope="module")
def scheduling_gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with the alpha features."""
    options = Options(feature_gates=GATES, runtime_config={"api/all": True})
    with run_control_plane(logs=tmp_path_factory.mktemp("gangs"), options=options) as plane:
        installed.serve(plane)
        yield plane


def test_a_gang_that_does_not_fit_binds_no_pod(scheduling_gangs: ControlPlane, tmp_path: Path) -> None:
    plane = scheduling_gangs
    kubectl, driver_user = plane.kubectl("default"), plane.user("pod-driver", ["system:masters"])
    with (
        WarmOperator(installed.rights(plane), tmp_path / "log"),
        plane.api(driver_user) as api,
        PodDriver(api) as driver,
    ):
        driver.add_node("small", {"cpu": "1", "memory": "8Gi", "pods": "20"})
        watched = Watched(kubectl, driver, job(template=ONE_CPU, scheduling={"gang": "Required"}))

        until(lambda: watched.condition("PodsReady")["reason"] == "Unschedulable", "the reason is told")
        assert "Insufficient cpu" in watched.status["message"] or "minCount (2)" in watched.status["message"]
        assert watched.status["phase"] == "Pending"
        pods = kubectl.json("get", "pods")["items"]
        assert [pod["spec"].get("nodeName") for pod in pods] == [None, None]
        driver.add_node("other", {"cpu": "1", "memory": "8Gi", "pods": "20"})
        watched.run(1)
        watched.finish(1)


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
    """As Kueue does: its webhook when a Job is made, its controller later."""
    patch = json.dumps({"spec": {"suspend": held}})
    kubectl("patch", "job", "animals-0001", "--type=merge", f"--patch={patch}")


def test_a_queue_holds_a_gang_and_lets_it_go(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """Its own `suspend` is never ours to change; while it waits, no deadline passes."""
    policy = {"startDeadlineSeconds": 60, "activeDeadlineSeconds": 3600}
    template = {"nodeSelector": {"free": kubectl.namespace}}
    document = job(scheduling={"queueName": "research"}, runPolicy=policy, template=template)
    watched = Watched(kubectl, pod_driver, document)
    until(lambda: watched.gangs(), "the Job is made")
    hold(kubectl, True)
    assert watched.gangs()[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"

    def queued() -> bool:
        assert watched.condition("PodsReady")["reason"] == "Queued", watched.status
        return True

    until(queued, "it is queued")
    began = watched.attempt(1)["start"]
    until(lambda: kubectl.json("get", "jobs")["items"][0]["spec"]["suspend"], "nobody fights the queue")
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


def test_a_gang_makes_way_for_a_higher_priority(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """The real scheduler preempts one pod, and the whole gang goes."""
    for name, value in (("low", 1), ("high", 1000)):
        made = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": value}
        kubectl.apply({**made, "metadata": {"name": f"{kubectl.namespace}-{name}"}})
    node = pod_driver.add_node(f"{kubectl.namespace}-full", {"cpu": "2", "memory": "8Gi", "pods": "20"})
    kubectl("label", "node", node, f"kubernetes.io/hostname={node}", "--overwrite")
    here = {**ONE_CPU, "nodeSelector": {"kubernetes.io/hostname": node}}
    low = Watched(
        kubectl,
        pod_driver,
        job("low", template=here, scheduling={"priorityClassName": f"{kubectl.namespace}-low"}),
    )
    low.run(1)
    high = Watched(
        kubectl,
        pod_driver,
        job("high", template=here, scheduling={"priorityClassName": f"{kubectl.namespace}-high"}),
    )
    end = low.ended(1)
    assert (end["reason"], end["counted"]) == ("Preempted", False)
    high.run(1)
    until(lambda: low.status["phase"] in ("Restarting", "Pending"), "the low one waits")
    high.finish(1)
    low.run(2)
