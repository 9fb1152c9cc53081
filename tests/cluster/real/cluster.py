"""A control plane with real nodes, in a network of its own on this machine."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.cluster import build
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import ControlPlane, new_folder, new_logs, reserved_port
from tests.cluster.kubeconfig import Endpoint
from tests.cluster.processes import Family
from tests.cluster.real import cgroups, dns, images, settings
from tests.cluster.real.machine import check
from tests.cluster.real.network import GATEWAY, Network
from tests.cluster.real.node import Node, Site
from tests.cluster.real.programs import Installed, installed
from tests.cluster.servers import Options
from tests.cluster.waiting import until

START_SECONDS = 120.0


class RealCluster(ControlPlane):
    """A control plane whose nodes are real.

    Its kubeconfigs hold on this machine and in the cluster's network alike.
    """

    def __init__(
        self, family: Family, logs: Path, port: int, authority: Authority, options: Options, network: Network
    ) -> None:
        super().__init__(family, logs, port, authority, options, enter=network.enter)
        self.network = network
        self.nodes: list[Node] = []

    @property
    def gateway(self) -> str:
        """The address at which pods reach what runs in the cluster's network beside them."""
        return GATEWAY

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def check(self) -> None:
        super().check()
        for node in self.nodes:
            node.check()

    def wait_ready(self, *nodes: Node) -> None:
        """Until these nodes, else all, have reported since their start and are ready."""
        with self.api() as api:
            core = client.CoreV1Api(api)

            def ready() -> bool:
                self.check()
                seen = {each.metadata.name: each for each in core.list_node().items}
                return all(_ready(seen.get(node.name), node.started) for node in nodes or self.nodes)

            until(ready, f"the nodes are ready (logs: {self.logs})", START_SECONDS)


def _ready(node: Any, started: datetime) -> bool:
    if node is None or any(taint.effect == "NoExecute" for taint in node.spec.taints or ()):
        return False
    ready = [each for each in node.status.conditions or () if each.type == "Ready" and each.status == "True"]
    return any(each.last_heartbeat_time >= started for each in ready)


@contextmanager
def real_cluster(nodes: int = 2, logs: Path | None = None, options: Options | None = None) -> Iterator[RealCluster]:
    """A cluster with that many real nodes until the end of the `with`; any number at once.

    Ends with this process, however it ends, and leaves nothing but logs: in `logs`, else in a new temporary folder.
    Builds and fetches the programs first where that has not been done. Raises UnfitError where this machine cannot
    run nodes.
    """
    check()
    build.binaries()
    programs = installed()
    logs = logs or new_logs()
    with ExitStack() as stack:
        folder = new_folder()
        group = folder.name
        family = Family(folder, cgroups.paths(group))
        stack.callback(family.end)
        network = Network(family, logs)
        stack.callback(network.stop)
        network.start()
        port = stack.enter_context(reserved_port())
        authority = Authority()
        cluster = RealCluster(family, logs, port, authority, _options(folder, authority, options or Options()), network)
        stack.callback(cluster.stop)
        network.forward(port, f"127.0.0.1:{port}")
        cluster.start()

        site = Site(
            family=family,
            logs=logs,
            network=network,
            programs=programs,
            images=images.write(folder, programs, os.uname().machine),
            spec=_runtime_spec(folder, programs),
            cgroup=group,
            endpoint=Endpoint(f"https://{GATEWAY}:{port}", authority.certificate),
            authority=authority,
            nodes=nodes,
        )
        server = dns.server(site)
        stack.callback(server.stop)
        server.start()
        cluster.nodes = [Node(site, number) for number in range(nodes)]
        for node in cluster.nodes:
            stack.callback(node.power_off)
            node.power_on()
        cluster.wait_ready()
        dns.wait_ready(network)
        yield cluster


def _options(folder: Path, authority: Authority, options: Options) -> Options:
    """The control plane's own, and what real nodes need: pods and kubelets reach it, and it hears of a power cut."""
    kubelets = authority.client("kube-apiserver", ["system:masters"])
    (folder / "kubelets.crt").write_bytes(kubelets.certificate)
    (folder / "kubelets.key").write_bytes(kubelets.key)
    ours: dict[str, Sequence[str]] = {
        "kube-apiserver": [
            "--bind-address=0.0.0.0",  # of the cluster's network
            f"--advertise-address={GATEWAY}",
            "--endpoint-reconciler-type=lease",  # as is Kubernetes' default: where the Service `kubernetes` leads
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={folder}/kubelets.crt",
            f"--kubelet-client-key={folder}/kubelets.key",
        ],
        "kube-controller-manager": [f"--node-monitor-grace-period={settings.GRACE_SECONDS}s"],
    }
    merged = {name: [*ours.get(name, ()), *options.arguments.get(name, ())] for name in ours | dict(options.arguments)}
    return replace(options, arguments=merged, hosts=[*options.hosts, GATEWAY])


def _runtime_spec(folder: Path, programs: Installed) -> Path:
    path = folder / "runtime-spec.json"
    default = subprocess.run([programs / "ctr", "oci", "spec"], check=True, capture_output=True).stdout
    bytecode = folder / "bytecode"
    bytecode.mkdir()
    bytecode.chmod(0o1777)  # whatever the umask says
    path.write_text(json.dumps(images.runtime_spec(json.loads(default), bytecode)))
    return path
