"""A real API server for the operator's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.operator.installed import definition, operator_user
from tests.operator.operating import OperatorProcess

__all__ = [
    "api",
    "cluster",
    "control_plane",
    "definition",
    "kubectl",
    "namespace",
    "operator_user",
    "pod_driver",
    "pytest_collection_finish",
    "pytest_runtest_makereport",
]


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
