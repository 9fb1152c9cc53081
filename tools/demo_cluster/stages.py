"""Where the pods of the demo run: as processes of this machine, or in containers on real nodes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api

from tailorpo_operator.api import naming
from tests.cluster.control_plane import ControlPlane, control_plane
from tests.cluster.process_pods import processes
from tests.cluster.prometheus import Target

OPERATOR_PORT = 8080
NAME = "app.kubernetes.io/name"
TRAINER = naming.COMMON[NAME]

Pod = Any


@dataclass(frozen=True)
class Stage:
    """A cluster whose nodes run TailorPO's pods.

    Attributes:
        where: what the nodes are, in words.
        expose: makes a port of this machine's loopback an address that pods can use.
        reach: makes an address of a pod one that this machine can use.
        values: values of the chart that this cluster needs, such as its images.
    """

    plane: ControlPlane
    where: str
    expose: Callable[[int], str]
    reach: Callable[[str, int], str]
    values: dict[str, object] = field(default_factory=dict)
    _reached: dict[str, str] = field(default_factory=dict)

    def targets(self) -> list[Target]:
        """What Prometheus scrapes: each pod of TailorPO that runs and serves metrics."""
        with self.plane.api() as api:
            pods = CoreV1Api(api).list_pod_for_all_namespaces(label_selector=f"{NAME} in (tailorpo-operator,{TRAINER})")
        return [self._target(pod) for pod in pods.items if pod.status.phase == "Running" and _serves(pod)]

    def _target(self, pod: Pod) -> Target:
        port = OPERATOR_PORT if pod.metadata.labels[NAME] != TRAINER else naming.METRICS_PORT
        key = f"{pod.status.pod_ip}:{port}"
        if key not in self._reached:
            self._reached[key] = self.reach(pod.status.pod_ip, port)
        return Target(self._reached[key], {"namespace": pod.metadata.namespace, "pod": pod.metadata.name})


def _serves(pod: Pod) -> bool:
    """Of a job only the first worker serves metrics."""
    return str((pod.metadata.labels or {}).get(naming.INDEX, "0")) == "0"


@contextmanager
def process_stage(logs: Path) -> Iterator[Stage]:
    """No root and no container engine: pods are processes of this machine."""
    with control_plane(logs) as plane, processes(plane, logs):
        where = "2 nodes that run pods as processes of this machine"
        yield Stage(plane, where, lambda port: f"127.0.0.1:{port}", lambda host, port: f"{host}:{port}")


@contextmanager
def real_stage(logs: Path) -> Iterator[Stage]:
    """Real kubelets and containers: Linux and root."""
    from tests.cluster.real.cluster import real_cluster
    from tests.cluster.real.images import TRAINER as IMAGE

    repository, tag = IMAGE.rsplit(":", 1)
    image = {"repository": repository, "tag": tag}  # the nodes have it; there is no registry
    with real_cluster(2, logs) as cluster:
        yield Stage(
            cluster,
            "2 real nodes with kubelets, containers and a network of their own",
            lambda port: str(cluster.network.expose(port)),
            cluster.network.reach,
            {"image": image, "trainer": {"image": image}},
        )
