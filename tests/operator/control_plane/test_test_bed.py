"""The test bed itself: what later tests rely on is real there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.api import Cluster, Kubectl, KubectlError
from tests.cluster.build import kubernetes_version
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import SIGTERM_EXIT, PodDriver
from tests.cluster.waiting import until

ROOT = Path(__file__).parents[3]

Fields = dict[str, Any]


def indexed_job(pods: int) -> Fields:
    """A job that no pod of which is started again, as each attempt of a training is one."""
    container = {"name": "worker", "image": "example.invalid/worker:1"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "gang"},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def config_map(name: str, owner: Fields | None = None) -> Fields:
    metadata: Fields = {"name": name}
    if owner is not None:
        identity = {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "ConfigMap", **identity}]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def conditions(kubectl: Kubectl, *target: str) -> dict[str, Fields]:
    status = kubectl.json("get", *target)["status"]
    return {each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"}


def test_serves_the_version_that_is_pinned(control_plane: ControlPlane, kubectl: Kubectl):
    assert kubectl.json("version")["serverVersion"]["gitVersion"] == kubernetes_version() == "v1.37.2"


def test_transition_rules_of_a_crd_hold(kubectl: Kubectl):
    group = f"{kubectl.namespace}.tailorpo.dev"
    rule = {"rule": "self >= oldSelf", "message": "size may only grow"}
    fields = {"size": {"type": "integer", "x-kubernetes-validations": [rule]}}
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "Heap", "plural": "heaps", "singular": "heap"}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"heaps.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }

    def heap(size: int) -> Fields:
        return {"apiVersion": f"{group}/v1", "kind": "Heap", "metadata": {"name": "one"}, "spec": {"size": size}}

    kubectl.apply(crd)
    try:
        kubectl("wait", "--for=condition=Established", f"crd/heaps.{group}")
        kubectl.apply(heap(2))
        kubectl.apply(heap(3))
        with pytest.raises(KubectlError, match="size may only grow"):
            kubectl.apply(heap(1))
        assert kubectl.json("get", "heap", "one")["spec"]["size"] == 3
    finally:
        kubectl("delete", "crd", f"heaps.{group}", "--wait=false")


def test_a_failed_pod_fails_its_indexed_job(kubectl: Kubectl, api: client.ApiClient, pod_driver: PodDriver):
    kubectl.apply(indexed_job(2))
    pods = pod_driver.scheduled(kubectl.namespace, 2)
    assert [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in pods] == ["0", "1"]

    for pod in pods:
        pod_driver.run(pod)
    until(lambda: kubectl.json("get", "job", "gang")["status"].get("ready") == 2, "both pods are ready")

    pod_driver.end(pods[1], exit_code=65, message="prompts are missing")
    failed = until(lambda: conditions(kubectl, "job", "gang").get("Failed"), "the job fails")
    assert failed["reason"] == "BackoffLimitExceeded"

    # The Job controller asked the other pod to go first, and its kubelet let it exit.
    ended = client.CoreV1Api(api).list_namespaced_pod(kubectl.namespace).items
    states = {pod.metadata.name: pod.status.container_statuses[0].state.terminated for pod in ended}
    assert {state.exit_code for state in states.values()} <= {65, SIGTERM_EXIT}
    assert states[pods[1].metadata.name].message == "prompts are missing"


def test_kubectl_reads_the_driver_as_a_kubelet(kubectl: Kubectl, pod_driver: PodDriver):
    def pod(name: str) -> Fields:
        containers = [{"name": "worker", "image": "example.invalid/worker:1"}]
        spec = {"restartPolicy": "Never", "containers": containers}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    reports = {
        "Completed": pod_driver.end,
        "ContainerCannotRun": lambda pod: pod_driver.end(pod, 127, reason="ContainerCannotRun"),
        "Error": lambda pod: pod_driver.end(pod, 1),
        "ImagePullBackOff": pod_driver.refuse_image,
        "OOMKilled": pod_driver.oom,
        "Running": pod_driver.run,
    }
    kubectl.apply(*(pod(status.lower()) for status in reports))
    pods = pod_driver.scheduled(kubectl.namespace, len(reports))  # both in the order of their names
    for report, each in zip(reports.values(), pods, strict=True):
        report(each)
    columns = [line.split() for line in kubectl("get", "pods", "--no-headers").splitlines()]
    assert [(name, status) for name, _, status, *_ in columns] == [(each.lower(), each) for each in reports]

    pod_driver.evict(pods[-1], "The node was low on resource: memory.")
    assert kubectl.json("get", "pod", "running")["status"]["reason"] == "Evicted"
    assert conditions(kubectl, "pod", "running")["DisruptionTarget"]["reason"] == "TerminationByKubelet"
    kubectl("delete", "pods", "--all", "--timeout=60s")  # waits until they are gone


def test_pods_of_a_lost_node_stay_until_it_is_back(kubectl: Kubectl, api: client.ApiClient, pod_driver: PodDriver):
    job = indexed_job(2)
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    job["spec"]["template"]["spec"]["topologySpreadConstraints"] = [
        spread | {"labelSelector": {"matchLabels": {"job-name": "gang"}}}
    ]
    kubectl.apply(job)
    pods = pod_driver.scheduled(kubectl.namespace, 2)
    for pod in pods:
        pod_driver.run(pod)
    lost = pods[0]

    pod_driver.lose(lost.spec.node_name)
    until(lambda: "DisruptionTarget" in conditions(kubectl, "pod", lost.metadata.name), "the lost pod is given up")
    left = kubectl.json("get", "pod", lost.metadata.name)
    assert left["metadata"]["deletionTimestamp"]
    assert left["status"]["phase"] == "Running"
    # Under `podReplacementPolicy: Failed` nobody knows that it is over.
    assert "Failed" not in conditions(kubectl, "job", "gang")

    pod_driver.recover(lost.spec.node_name)
    until(lambda: "Failed" in conditions(kubectl, "job", "gang"), "the job fails")


def test_children_go_with_their_owner(kubectl: Kubectl):
    kubectl.apply(config_map("parent"))
    kubectl.apply(config_map("child", owner=kubectl.json("get", "configmap", "parent")), config_map("stranger"))
    kubectl("delete", "configmap", "parent")
    kubectl("wait", "--for=delete", "configmap/child", "--timeout=60s")
    assert kubectl("get", "configmap", "stranger", "--output=name").strip() == "configmap/stranger"


def test_a_role_allows_what_it_says_and_no_more(kubectl: Kubectl, cluster: Cluster):
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:reader")
    reader = cluster.kubectl(kubectl.namespace, cluster.service_account(kubectl.namespace, "reader"))
    reader("get", "configmaps")
    for refused in (
        ["get", "secrets"],
        ["delete", "configmaps", "--all"],
        ["get", "configmaps", "--namespace=default"],
    ):
        with pytest.raises(KubectlError, match="Forbidden"):
            reader(*refused)


def test_the_audit_log_tells_who_wrote_what(kubectl: Kubectl, control_plane: ControlPlane):
    writer = control_plane.kubectl(kubectl.namespace, control_plane.user("writer", ["system:masters"]))
    mark = control_plane.audit.mark()
    writer("create", "configmap", "first")
    writer("create", "configmap", "second")
    writer("label", "configmap", "first", "color=red")
    with pytest.raises(KubectlError, match="already exists"):
        writer("create", "configmap", "first")
    written = [each for each in control_plane.audit.since(mark) if each.user == "writer" and each.writes]
    assert [(each.verb, each.resource, each.code) for each in written] == [
        ("create", "configmaps", 201),
        ("create", "configmaps", 201),
        ("patch", "configmaps", 200),
        ("create", "configmaps", 409),
    ]


def test_an_api_server_comes_back_where_it_was(kubectl: Kubectl, control_plane: ControlPlane):
    kubectl.apply(config_map("kept"))
    server = control_plane.servers["kube-apiserver"]
    server.stop()
    with pytest.raises(KubectlError, match="refused"):
        kubectl("get", "configmap", "kept")
    server.start()
    until(control_plane.ready, "the API server is back")
    kubectl("get", "configmap", "kept")


@pytest.fixture
def other_cluster(tmp_path: Path) -> Iterator[tuple[Cluster, Path, subprocess.Popen[str]]]:
    """A second control plane, run by hand: what reaches it, its folder, and its process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "up", "--nodes=2"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            printed = re.fullmatch(r"export KUBECONFIG=(\S+)\n", process.stdout.readline())
            assert printed is not None
            kept = shutil.copy(printed[1], tmp_path)
            yield Cluster(Path(kept), tmp_path), Path(printed[1]).parent, process
        finally:
            process.kill()


def test_two_control_planes_do_not_meet(control_plane: ControlPlane, kubectl: Kubectl, other_cluster, tmp_path: Path):
    other, folder, process = other_cluster
    nodes = other.kubectl().json("get", "nodes")["items"]
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in nodes] == ["8", "8"]
    with pytest.raises(KubectlError, match="not found"):
        other.kubectl()("get", "namespace", kubectl.namespace)

    # An administrator of one is nobody at the other.
    config = json.loads(control_plane.kubeconfig.read_text())
    config["clusters"] = json.loads(other.kubeconfig.read_text())["clusters"]
    stranger = tmp_path / "stranger.kubeconfig"
    stranger.write_text(json.dumps(config))
    with pytest.raises(KubectlError, match=r"Unauthorized|logged in"):
        other.kubectl(user=stranger)("get", "nodes")

    # One that is killed leaves nothing, and the other does not notice.
    process.kill()
    until(lambda: not folder.exists(), "the folder of a killed control plane is removed")
    with pytest.raises(KubectlError, match="refused"):
        other.kubectl()("get", "nodes")
    assert control_plane.serves()
