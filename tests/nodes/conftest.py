"""Real nodes below a real API server, for tests of what only they can show."""

from collections.abc import Iterator

import pytest

from tests.cluster.fixtures import (
    api,
    kubectl,
    namespace,
    pytest_collection_finish,
    pytest_runtest_makereport,
)
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.fixtures import real_cluster
from tests.cluster.real.node import Node

__all__ = ["api", "kubectl", "namespace", "pytest_collection_finish", "pytest_runtest_makereport", "real_cluster"]


@pytest.fixture(scope="session")
def cluster(real_cluster: RealCluster) -> RealCluster:
    """What the fixtures `api`, `namespace` and `kubectl` are of, here."""
    return real_cluster


@pytest.fixture
def mortal_node(real_cluster: RealCluster) -> Iterator[Node]:
    """A node that this test may cut off, drain or let die; afterwards it is as before."""
    node = real_cluster.nodes[-1]
    yield node
    if not node.running:
        node.power_on()
    node.heal()
    real_cluster.kubectl()("uncordon", node.name)
    real_cluster.wait_ready()
