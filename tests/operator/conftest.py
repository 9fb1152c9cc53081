"""A real API server for the operator's tests."""

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


@pytest.fixture(scope="session")
def definition(cluster: Cluster) -> str:
    """The plural of the resource, once the cluster serves it."""
    kubectl = cluster.kubectl()
    kubectl.apply(crd.definition())
    kubectl("wait", "--for=condition=Established", f"crd/{names.PLURAL}.{names.GROUP}", "--timeout=60s")
    return names.PLURAL
