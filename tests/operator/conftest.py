"""A real API server for the operator's tests."""

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
