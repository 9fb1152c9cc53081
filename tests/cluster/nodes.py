"""Node objects without a machine behind them: enough for the scheduler and for the controllers."""

from collections.abc import Mapping
from datetime import UTC, datetime

from kubernetes import client

ALLOCATABLE = {"cpu": "32", "memory": "128Gi", "ephemeral-storage": "1Ti", "pods": "1000", "nvidia.com/gpu": "8"}


def create_node(api: client.ApiClient, name: str, allocatable: Mapping[str, str] = ALLOCATABLE) -> None:
    """A ready node with these resources."""
    core = client.CoreV1Api(api)
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    core.create_node({"metadata": {"name": name, "labels": labels}})
    resources = dict(allocatable)
    core.patch_node_status(name, {"status": {"capacity": resources, "allocatable": resources}})
    set_ready(api, name, "True", "KubeletReady")


def set_ready(api: client.ApiClient, name: str, status: str, reason: str) -> None:
    """Writes the node's condition Ready: True, False or Unknown.

    The node controller taints a node that is not ready, which ends the toleration of its pods after a while.
    """
    now = datetime.now(UTC).isoformat()
    condition = {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    client.CoreV1Api(api).patch_node_status(name, {"status": {"conditions": [condition]}})
