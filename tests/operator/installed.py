"""Fixtures of the manifests in a cluster; a conftest.py imports them with the cluster's."""

from pathlib import Path

import pytest

from tailorpo_operator.api import crd
from tailorpo_operator.api import types as names
from tests.cluster.api import Cluster
from tests.cluster.waiting import until

ROOT = Path(__file__).parents[2]


def serve(cluster: Cluster) -> str:
    """Makes the cluster serve TailorPOJobs; returns their plural."""
    kubectl = cluster.kubectl()
    kubectl.apply(crd.definition())

    def established() -> bool:
        status = kubectl.json("get", f"crd/{names.PLURAL}.{names.GROUP}").get("status", {})
        return any(each["type"] == "Established" for each in status.get("conditions") or [])

    until(established, "the API server serves the definition")
    return names.PLURAL


def rights(cluster: Cluster) -> Path:
    """The kubeconfig of the operator's service account, with the rights of `manifests/` and no other."""
    kubectl = cluster.kubectl("tailorpo-system")
    for name in ("namespace", "rbac"):
        kubectl("apply", "--server-side", f"--filename={ROOT / 'manifests' / 'base' / name}.yaml")
    return cluster.service_account("tailorpo-system", "tailorpo-operator")


@pytest.fixture(scope="session")
def definition(cluster: Cluster) -> str:
    """The plural of the resource, once the cluster serves it."""
    return serve(cluster)


@pytest.fixture(scope="session")
def operator_user(cluster: Cluster, definition: str) -> Path:
    """The kubeconfig of the operator."""
    return rights(cluster)
