"""Node objects without a machine behind them: enough for the scheduler and for the controllers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from kubernetes import client

ALLOCATABLE = {"cpu": "32", "memory": "128Gi", "ephemeral-storage": "1Ti", "pods": "1000", "nvidia.com/gpu": "8"}


LEASES = "kube-node-lease"
LEASE_SECONDS = 40
GONE = "tailorpo.dev/lost"
"""A taint that no pod tolerates."""


def create_node(
    api: client.ApiClient,
    name: str,
    allocatable: Mapping[str, str] = ALLOCATABLE,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A ready node with these resources, and more labels than the usual."""
    core = client.CoreV1Api(api)
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", **more}
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


def create_lease(api: client.ApiClient, name: str) -> None:
    """The Lease by which a node controller knows that a node is alive; deleted with the node."""
    node = client.CoreV1Api(api).read_node(name)
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid}
    meta = {"name": name, "ownerReferences": [owner]}
    spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": _precisely()}
    client.CoordinationV1Api(api).create_namespaced_lease(LEASES, {"metadata": meta, "spec": spec})


def renew_lease(api: client.ApiClient, name: str) -> None:
    change = {"spec": {"renewTime": _precisely()}}
    client.CoordinationV1Api(api).patch_namespaced_lease(name, LEASES, change)


def drive_out(api: client.ApiClient, name: str, away: bool) -> None:
    """Evicts the node's pods at once, not after the five minutes for which they tolerate an unreachable node."""
    core = client.CoreV1Api(api)
    others = [each for each in core.read_node(name).spec.taints or [] if each.key != GONE]
    taints = [*api.sanitize_for_serialization(others), *([{"key": GONE, "effect": "NoExecute"}] if away else [])]
    core.patch_node(name, {"spec": {"taints": taints}})


def _precisely() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
