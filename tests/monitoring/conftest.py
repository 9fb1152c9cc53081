"""Prometheus' programs, and one scene for the session."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.api import Cluster
from tests.cluster.fixtures import cluster, pytest_collection_finish, pytest_runtest_makereport
from tests.cluster.prometheus import PROMETHEUS
from tests.monitoring.scene import Scene, scripted_job
from tests.monitoring.scene import scene as begin
from tests.operator.installed import definition, operator_user
from tests.trainer.conftest import make_pipeline

__all__ = ["cluster", "definition", "operator_user", "pytest_collection_finish", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of Prometheus' programs."""
    return build.binaries(PROMETHEUS)


@pytest.fixture(scope="module")  # its training computes until its end
def scene(
    cluster: Cluster, programs: Path, operator_user: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    document = partial(scripted_job, make_pipeline(tmp_path_factory.mktemp("pipeline")))
    with begin(cluster, operator_user, document, tmp_path_factory.mktemp("scene")) as made:
        yield made
