"""A real API server for the operator's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tailorpo_operator import api as names
from tailorpo_operator import crd
from tests.cluster.api import Cluster
from tests.cluster.fixtures import (
    api,
    cluster,
    control_plane,
    kubectl,
    namespace,
    pod_driver,
    pytest_collection_finish,
    pytest_runtest_makereport,
)
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess

ROOT = Path(__file__).parents[2]

__all__ = [
    "api",
    "cluster",
    "control_plane",
    "kubectl",
    "namespace",
    "pod_driver",
    "pytest_collection_finish",
    "pytest_runtest_makereport",
]


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
        kubectl("apply", "--server-side", f"--filename={ROOT / 'manifests' / name}.yaml")
    return cluster.service_account("tailorpo-system", "tailorpo-operator")


@pytest.fixture(scope="session")
def definition(cluster: Cluster) -> str:
    """The plural of the resource, once the cluster serves it."""
    return serve(cluster)


@pytest.fixture(scope="session")
def operator_user(cluster: Cluster, definition: str) -> Path:
    """The kubeconfig of the operator."""
    return rights(cluster)


@pytest.fixture(scope="session")
def the_operator(operator_user: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One for the session, not started yet."""
    process = OperatorProcess(operator_user, tmp_path_factory.mktemp("operator") / "log")
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def operator(the_operator: OperatorProcess) -> OperatorProcess:
    """`tailorpo operator`, for the whole cluster; started again if a test has killed it."""
    if not the_operator.running:
        the_operator.start()
    return the_operator


@pytest.fixture
def alone(the_operator: OperatorProcess, operator_user: Path) -> Path:
    """The kubeconfig for an operator of the test's own, with no other one about."""
    the_operator.kill()
    return operator_user
