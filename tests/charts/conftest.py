"""Helm, and a control plane on which tests install the chart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.releases import Release, remove_all
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import (
    api,
    cluster,
    control_plane,
    helm,
    kubectl,
    namespace,
    pod_driver,
    pytest_collection_finish,
    pytest_runtest_makereport,
)
from tests.cluster.helm import Helm
from tests.cluster.pods import PodDriver

__all__ = [
    "api",
    "cluster",
    "control_plane",
    "helm",
    "kubectl",
    "namespace",
    "pod_driver",
    "pytest_collection_finish",
    "pytest_runtest_makereport",
]


@pytest.fixture
def release(
    helm: Helm, control_plane: ControlPlane, pod_driver: PodDriver, namespace: str, tmp_path: Path
) -> Iterator[Release]:
    """Not installed yet, on a control plane without any trace of TailorPO; afterwards all is removed again.

    In a namespace of its own; `namespace` is for jobs.
    """
    release = Release(control_plane, pod_driver, tmp_path, "tailorpo", f"operator-{namespace}")
    try:
        yield release
    finally:
        remove_all(control_plane, release.namespace)
