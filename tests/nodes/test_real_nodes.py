"""The test bed itself: what later tests rely on is real on its nodes."""

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.api import Kubectl, KubectlError
from tests.cluster.real import cgroups
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.cluster import real_cluster as run_real_cluster
from tests.cluster.real.images import TRAINER
from tests.cluster.real.node import Node
from tests.cluster.real.programs import UnfitError
from tests.cluster.waiting import TIMEOUT_SECONDS, until

ROOT = Path(__file__).parents[2]
IMPORT_SECONDS = 240.0  # seconds that a busy machine may need for `import torch`
KEEP = "tests.tailorpo.dev/keep"
# The first process of a container ignores SIGTERM unless it has a handler.
WORK = "trap 'echo saved > /dev/termination-log; exit 75' TERM; echo up; while :; do sleep .1; done"
SERVE = """exec python -c '
import socket
server = socket.create_server(("", 5000))
while True:
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()
'"""
ASK = """exec python -c '
import socket, time
while True:
    try:
        connection = socket.create_connection(("hello", 80), timeout=5)
        break
    except OSError:  # it may not be up yet
        time.sleep(0.1)
print(connection.recv(5).decode())
'"""


Fields = dict[str, Any]


def pod(name: str, script: str, **spec: Any) -> Fields:
    """A pod that runs a script of the shell, with nothing allowed that a trainer does not need."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "worker", "image": TRAINER, "command": ["sh", "-c", script], "securityContext": security}
    container |= {key: spec.pop(key) for key in ("resources", "volumeMounts") if key in spec}
    identity = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    fields: Fields = {"restartPolicy": "Never", "securityContext": identity, "containers": [container]}
    fields |= {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 20}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": fields | spec}


def on(node: Node) -> Fields:
    return {"nodeSelector": {"kubernetes.io/hostname": node.name}}


def script(code: str) -> str:
    return f"exec python -c '{code}'"


def is_up(kubectl: Kubectl, name: str) -> bool:
    """Whether the pod runs and has printed `up`."""
    return bool(kubectl.json("get", "pod", name)["status"]["phase"] == "Running" and kubectl("logs", name) == "up\n")


def ended(kubectl: Kubectl, name: str, seconds: float = TIMEOUT_SECONDS) -> Fields:
    """How the pod's container ended, once the pod has."""

    def state() -> Any:
        status = kubectl.json("get", "pod", name)["status"]
        return status["phase"] in ("Succeeded", "Failed") and status["containerStatuses"][0]["state"]["terminated"]

    return dict(until(state, f"{name} ends", seconds))


def condition(kubectl: Kubectl, kind: str, target: str, name: str) -> str:
    """The reason why a condition holds; empty if it does not."""
    conditions = kubectl.json("get", target, name)["status"].get("conditions", [])
    return next((each["reason"] for each in conditions if each["type"] == kind and each["status"] == "True"), "")


def test_the_trainer_runs_in_a_pod_that_may_do_nothing(kubectl: Kubectl):
    job = (ROOT / "examples" / "demo.yaml").read_text()
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "job"}, "data": {"job.yaml": job}},
        pod(
            "trainer",
            "tailorpo --version && tailorpo validate /job/job.yaml && python -c 'import torch; print(torch.ones(2))'",
            volumes=[{"name": "job", "configMap": {"name": "job"}}, {"name": "scratch", "emptyDir": {}}],
            volumeMounts=[{"name": "job", "mountPath": "/job"}, {"name": "scratch", "mountPath": "/tmp"}],
        ),
    )
    assert ended(kubectl, "trainer", IMPORT_SECONDS)["exitCode"] == 0, kubectl("logs", "trainer")
    output = kubectl("logs", "trainer")
    assert output.startswith("tailorpo ")
    assert "/job/job.yaml" in output
    assert output.endswith("tensor([1., 1.])\n")


def test_pods_of_two_nodes_find_each_other_by_name(kubectl: Kubectl, real_cluster: RealCluster):
    first, second = real_cluster.nodes
    labels = {"tests": "gang"}
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels}
    serve = 'import socket as s; c, _ = s.create_server(("", 5000)).accept(); c.sendall(b"hello"); c.close()'
    ask = (
        "import socket, time\n"
        "while True:\n"
        '  try: c = socket.create_connection(("zero.gang", 5000)); break\n'
        "  except OSError: time.sleep(.1)\n"
        "print(c.recv(5).decode(), socket.gethostname())"
    )
    pods = [
        pod("zero", script(serve), hostname="zero", subdomain="gang", **on(first)),
        pod("one", script(ask), hostname="one", subdomain="gang", **on(second)),
    ]
    for each in pods:
        each["metadata"]["labels"] = labels
    headless = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gang"}, "spec": service}
    kubectl.apply(headless, *pods)
    assert ended(kubectl, "one")["exitCode"] == 0
    assert kubectl("logs", "one") == "hello one\n"
    assert ended(kubectl, "zero")["exitCode"] == 0
    assert [kubectl.json("get", "pod", name)["spec"]["nodeName"] for name in ("zero", "one")] == ["node-0", "node-1"]


def test_a_service_has_an_address_that_leads_to_its_pod(kubectl: Kubectl, real_cluster: RealCluster):
    """From the other node, from its own, and from itself."""
    here, there = real_cluster.nodes
    server = pod("server", SERVE, **on(here))
    server["metadata"]["labels"] = {"tests": "server"}
    spec = {"selector": {"tests": "server"}, "ports": [{"port": 80, "targetPort": 5000}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": spec}
    clients = {"neighbour": on(here), "stranger": on(there)}
    kubectl.apply(service, server, *(pod(name, ASK, **node) for name, node in clients.items()))
    for name in clients:
        assert ended(kubectl, name)["exitCode"] == 0
        assert kubectl("logs", name) == "hello\n"
    assert kubectl("exec", "server", "--", "sh", "-c", ASK) == "hello\n"
    address = kubectl.json("get", "service", "hello")["spec"]["clusterIP"]
    assert kubectl("exec", "server", "--", "getent", "hosts", "hello").split() == [
        address,
        f"hello.{kubectl.namespace}.svc.cluster.local",
    ]


def test_a_pod_with_an_account_reaches_the_api_server(kubectl: Kubectl):
    """As every client in a cluster."""
    code = (
        "from kubernetes import client, config\n"
        "config.load_incluster_config()\n"
        "api = client.AuthenticationV1Api()\n"
        "review = api.create_self_subject_review(client.V1SelfSubjectReview())\n"
        "print(review.status.user_info.username)\n"
    )
    named = "export KUBERNETES_SERVICE_HOST=kubernetes.default.svc KUBERNETES_SERVICE_PORT=443"
    ask = f"python -c '{code}'"
    kubectl.apply(pod("client", f"{ask} && {named} && exec {ask}", automountServiceAccountToken=True))
    assert ended(kubectl, "client")["exitCode"] == 0, kubectl("logs", "client")
    assert kubectl("logs", "client") == f"system:serviceaccount:{kubectl.namespace}:default\n" * 2


def test_the_kubelet_tells_how_a_container_ended(kubectl: Kubectl):
    hungry = script('held = bytearray(1 << 30); print("not reached")')
    kubectl.apply(
        pod("bad", "echo prompts are missing > /dev/termination-log; exit 65"),
        pod("hungry", hungry, resources={"limits": {"memory": "64Mi"}}),
    )
    bad = ended(kubectl, "bad")
    assert (bad["exitCode"], bad["message"], bad["reason"]) == (65, "prompts are missing\n", "Error")
    killed = ended(kubectl, "hungry")
    assert (killed["exitCode"], killed["reason"]) == (137, "OOMKilled")


def test_a_deleted_pod_gets_sigterm_and_its_grace(kubectl: Kubectl):
    polite = pod("polite", WORK)
    stubborn = pod("stubborn", "trap '' TERM; echo up; while :; do sleep .1; done", terminationGracePeriodSeconds=1)
    for each in (polite, stubborn):
        each["metadata"]["finalizers"] = [KEEP]  # so that its end can be read
    kubectl.apply(polite, stubborn)
    for name in ("polite", "stubborn"):
        until(lambda: is_up(kubectl, name), f"{name} is up")  # noqa: B023
    kubectl("delete", "pods", "--all", "--wait=false")
    saved = ended(kubectl, "polite")
    assert (saved["exitCode"], saved["message"]) == (75, "saved\n")
    assert ended(kubectl, "stubborn")["exitCode"] == 137
    kubectl("patch", "pods/polite", "pods/stubborn", "--patch", '{"metadata": {"finalizers": null}}')


def test_kubectl_asks_the_kubelet(kubectl: Kubectl):
    kubectl.apply(pod("worker", WORK))
    kubectl("wait", "--for=condition=Ready", "pod/worker", "--timeout=60s")
    assert kubectl("exec", "worker", "--", "cat", "/proc/1/comm") == "sh\n"
    assert kubectl("logs", "worker") == "up\n"


def test_a_power_cut_loses_the_pods_until_the_node_is_back(
    kubectl: Kubectl, real_cluster: RealCluster, mortal_node: Node
):
    kubectl.apply(pod("worker", WORK, **on(mortal_node)))
    kubectl("wait", "--for=condition=Ready", "pod/worker", "--timeout=60s")

    mortal_node.power_off()
    until(lambda: not condition(kubectl, "Ready", "node", mortal_node.name), "the node is given up")
    until(lambda: condition(kubectl, "DisruptionTarget", "pod", "worker"), "the pod is given up")
    lost = kubectl.json("get", "pod", "worker")
    assert lost["metadata"]["deletionTimestamp"]
    assert lost["status"]["phase"] == "Running"  # the last known phase

    mortal_node.power_on()
    real_cluster.wait_ready(mortal_node)
    kubectl("wait", "--for=delete", "pod/worker", "--timeout=60s")
    kubectl.apply(pod("next", "echo back", **on(mortal_node)))
    assert ended(kubectl, "next")["exitCode"] == 0
    assert kubectl("logs", "next") == "back\n"


def test_a_reboot_ends_the_pods_before_the_node_is_missed(
    kubectl: Kubectl, real_cluster: RealCluster, mortal_node: Node
):
    kubectl.apply(pod("worker", WORK, **on(mortal_node)))
    kubectl("wait", "--for=condition=Ready", "pod/worker", "--timeout=60s")
    mortal_node.power_off()
    mortal_node.power_on()
    lost = ended(kubectl, "worker")
    assert (lost["exitCode"], lost["reason"]) == (255, "Unknown")
    assert not condition(kubectl, "DisruptionTarget", "pod", "worker")
    real_cluster.wait_ready(mortal_node)


def test_a_partitioned_node_runs_on_unseen(kubectl: Kubectl, real_cluster: RealCluster, mortal_node: Node):
    kubectl.apply(pod("worker", WORK, **on(mortal_node)))
    kubectl("wait", "--for=condition=Ready", "pod/worker", "--timeout=60s")
    uid = kubectl.json("get", "pod", "worker")["metadata"]["uid"]

    mortal_node.partition()
    until(lambda: condition(kubectl, "DisruptionTarget", "pod", "worker"), "the pod is given up")
    running = [path for mount in cgroups.paths(mortal_node.cgroup) for path in mount.rglob(f"pod{uid}")]
    assert any(path.exists() for path in running)

    mortal_node.heal()
    kubectl("wait", "--for=delete", "pod/worker", "--timeout=60s")
    until(lambda: condition(kubectl, "Ready", "node", mortal_node.name), "the node is back")


def test_a_drained_node_lets_its_pods_end(kubectl: Kubectl, mortal_node: Node):
    worker = pod("worker", WORK, **on(mortal_node))
    worker["metadata"]["finalizers"] = [KEEP]
    kubectl.apply(worker)
    until(lambda: is_up(kubectl, "worker"), "the pod is up")
    with pytest.raises(KubectlError, match="context deadline exceeded"):  # the finalizer holds the pod
        kubectl("drain", mortal_node.name, "--force", "--timeout=5s")
    assert ended(kubectl, "worker")["exitCode"] == 75
    assert condition(kubectl, "DisruptionTarget", "pod", "worker") == "EvictionByEvictionAPI"
    kubectl("patch", "pod/worker", "--patch", '{"metadata": {"finalizers": null}}')


@pytest.fixture
def server() -> Iterator[int]:
    """The port of 127.0.0.1 on which this process answers `hello`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port
        made.shutdown()


def test_a_pod_reaches_what_is_exposed_to_it(kubectl: Kubectl, real_cluster: RealCluster, server: int):
    get = f'import urllib.request as u; print(u.urlopen("http://{real_cluster.network.expose(server)}").read())'
    kubectl.apply(pod("client", script(get)))
    assert ended(kubectl, "client")["exitCode"] == 0
    assert kubectl("logs", "client") == "b'hello'\n"


def test_a_pod_is_reached_from_this_machine_and_from_beside_it(kubectl: Kubectl, real_cluster: RealCluster):
    kubectl.apply(pod("server", "exec python -m http.server 8000"))
    kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=60s")
    address = kubectl.json("get", "pod", "server")["status"]["podIP"]
    reached = real_cluster.network.reach(address, 8000)

    def users() -> str:
        try:
            with urllib.request.urlopen(f"http://{reached}/etc/passwd") as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    listed = until(users, "the pod answers")
    assert "nonroot" in listed
    get = f"import urllib.request as u; print(u.urlopen('http://{address}:8000/etc/passwd').read().decode(), end='')"
    with real_cluster.network.popen(sys.executable, "-c", get, stdout=subprocess.PIPE, text=True) as beside:
        assert beside.communicate()[0] == listed
    assert real_cluster.network.run(sys.executable, "-c", get).stdout == listed


def test_a_machine_that_cannot_have_nodes_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65532)
    with pytest.raises(UnfitError, match="root"), run_real_cluster():
        pass


def test_nothing_is_left_of_a_cluster_whose_owner_is_killed(tmp_path: Path, kubectl: Kubectl):
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "up", "--nodes=1", "--real"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = re.fullmatch(r"export KUBECONFIG=(\S+)\n", process.stdout.readline())
        assert printed is not None
        folder = Path(printed[1]).parent
        group = folder.name
        assert any(path.exists() for path in cgroups.paths(group))
        assert belongings(group)
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not folder.exists(), "its folder is removed")
    assert not any(path.exists() for path in cgroups.paths(group))
    until(lambda: not belongings(group), "its processes are gone")
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    kubectl("get", "nodes")  # the other cluster did not notice


def belongings(group: str) -> list[str]:
    """The command lines of this machine's processes that name a cluster's folder."""
    lines = list[str]()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:  # it ended meanwhile
            continue
    return [line for line in lines if group in line]
