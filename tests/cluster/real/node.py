"""One node: containerd, a kubelet and kube-proxy in namespaces of their own, with a disk that survives a power cut."""

import itertools
import json
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tests.cluster import kubeconfig
from tests.cluster.certificates import Authority
from tests.cluster.kubeconfig import Endpoint
from tests.cluster.processes import Family, Server
from tests.cluster.real import cgroups, settings
from tests.cluster.real.network import (
    BRIDGE,
    GATEWAY,
    MACHINE,
    PREFIX,
    Network,
    ip,
    is_elsewhere,
    node_address,
    pod_addresses,
)
from tests.cluster.real.programs import SYSTEM_PATH, Installed, tool
from tests.cluster.waiting import until
from tests.cluster.watchdog import remove_cgroup

OFF_SECONDS = 30.0  # until the kernel has ended what ran on a node


@dataclass(frozen=True)
class Site:
    """What all nodes of a cluster have in common."""

    family: Family
    logs: Path
    network: Network
    programs: Installed
    images: Sequence[Path]
    spec: Path  # what containers are made from
    cgroup: str
    endpoint: Endpoint  # of the API server, as nodes reach it
    authority: Authority
    nodes: int


class Node:
    """A node with a number; nothing of it runs before `power_on`."""

    def __init__(self, site: Site, number: int) -> None:
        self.name = f"node-{number}"
        self.address = node_address(number)
        self.pods = pod_addresses(number)
        self._site = site
        self._number = number
        self._starts = itertools.count(1)
        self.cgroup = f"{site.cgroup}/{self.name}"
        self._folder = site.family.folder / self.name
        self._write()
        isolated = [tool("unshare"), "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        program = [sys.executable, "-I", str(Path(__file__).with_name("init.py")), f"{self._folder}/node.json"]
        command = [*site.network.enter, *isolated, "--mount-proc", "--", *program]
        self._server = Server(command, site.logs / f"{self.name}.log", site.family, self.name)

    def __repr__(self) -> str:
        return self.name

    @property
    def running(self) -> bool:
        return self._server.running

    def power_on(self) -> None:
        """Starts the node; it is ready some seconds later, and what ran on it before its power was cut is known."""
        cgroups.make(self.cgroup)
        self.started = datetime.now(UTC).replace(microsecond=0)  # as exact as Kubernetes' times
        self._server.start()
        outside = self._site.network
        # Before nsenter it is in this machine's network, then in the cluster's.
        until(lambda: is_elsewhere(self._server, Path(MACHINE), outside.path), f"{self.name} has a network")
        self._cable = f"{self.name}.{next(self._starts)}"  # the kernel may still hold the last one
        outside.ip(
            f"link add {self._cable} type veth peer name eth0 netns {self._server.pid}",
            f"link set {self._cable} master {BRIDGE} up",
            f"route replace {self.pods} via {self.address} dev {BRIDGE}",
        )
        others = [number for number in range(self._site.nodes) if number != self._number]
        ip(
            self._server.pid,
            "link set lo up",
            f"addr add {self.address}/{PREFIX} dev eth0",
            "link set eth0 up",
            *(f"route add {pod_addresses(number)} via {node_address(number)}" for number in others),
            f"route add default via {GATEWAY}",
        )

    def power_off(self) -> None:
        """A power cut: all its processes end at once, without a word; its disk stays as it is."""
        first = _child(self._server.pid) if self.running else None
        self._server.stop()
        if first is not None:
            with first:  # it ends after all others in its namespace
                select.select([first], [], [], OFF_SECONDS)
        for path in cgroups.paths(self.cgroup):
            remove_cgroup(str(path))

    def partition(self) -> None:
        """Pulls the network cable: the node and its pods run on, and reach only each other."""
        self._site.network.ip(f"link set {self._cable} down")

    def heal(self) -> None:
        self._site.network.ip(f"link set {self._cable} up")

    def check(self) -> None:
        """Raises ServerError if the node ended by itself."""
        self._server.check()

    def _write(self) -> None:
        """The node's disk, as it is before its first start."""
        site, folder = self._site, self._folder
        logs = site.logs / self.name
        for each in ("cni", "temporary", "var-lib", "var-lib-work"):
            (folder / each).mkdir(parents=True)
        logs.mkdir()
        user = site.authority.client(f"system:node:{self.name}", ["system:nodes"])
        kubeconfig.write(folder / "kubeconfig", site.endpoint, user)
        kubeconfig.write(folder / "kube-proxy.kubeconfig", site.endpoint, site.authority.client("system:kube-proxy"))
        arguments = [
            f"--config={folder}/kubelet.json",
            f"--kubeconfig={folder}/kubeconfig",
            f"--root-dir={folder}/kubelet",
            f"--cert-dir={folder}/certificates",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        ]
        node = {
            "name": self.name,
            "folder": str(folder),
            "logs": str(logs),
            "programs": str(site.programs.folder),
            "path": f"{site.programs.folder}:{site.programs.nft.parent}:{SYSTEM_PATH}",
            "libraries": site.programs.libraries,
            "images": [str(image) for image in site.images],
            "sysctls": settings.SYSCTLS,
            "kubelet": arguments,
        }
        for name, content in {
            "node.json": json.dumps(node),
            "resolv.conf": f"nameserver {GATEWAY}\n",
            "containerd.toml": settings.containerd(folder, site.programs.folder, site.programs.runc, site.spec),
            "cni/10-pods.conflist": settings.cni(folder, self.pods),
            "kubelet.json": settings.kubelet(folder, self.cgroup, site.family.folder / "ca.crt"),
            "kube-proxy.json": settings.kube_proxy(folder, self.name),
        }.items():
            (folder / name).write_text(content)


def _child(pid: int) -> IO[bytes] | None:
    """The one child of a process, as a file that can be read once that has ended."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return os.fdopen(os.pidfd_open(int(children[0])), "rb") if children else None
