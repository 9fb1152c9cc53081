"""Real nodes below a real API server, for tests of what only they can show."""

import pytest

from tests.cluster.fixtures import api, kubectl, namespace, pytest_runtest_makereport
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.fixtures import mortal_node, pytest_collection_finish, real_cluster
from tests.operator.installed import definition, operator_user

__all__ = [
    "api",
    "definition",
    "kubectl",
    "mortal_node",
    "namespace",
    "operator_user",
    "pytest_collection_finish",
    "pytest_runtest_makereport",
    "real_cluster",
]


@pytest.fixture(scope="session")
def cluster(real_cluster: RealCluster) -> RealCluster:
    """What the fixtures `api`, `namespace` and `kubectl` are of, here."""
    return real_cluster
