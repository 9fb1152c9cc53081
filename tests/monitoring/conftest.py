"""Prometheus' programs, and one scene for the session."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.api import Cluster
from tests.cluster.fixtures import cluster, pytest_runtest_makereport
from tests.cluster.prometheus import PROMETHEUS
from tests.monitoring.scene import Scene, scripted_job
from tests.monitoring.scene import scene as begin
from tests.operator.installed import definition, operator_user
from tests.trainer.conftest import make_pipeline

__all__ = ["cluster", "definition", "operator_user", "pytest_runtest_makereport"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what the tests need before the first of them: its progress is shown, and no timeout applies."""
    if session.config.option.collectonly:
        return
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        if "programs" in used:
            build.binaries(PROMETHEUS)
        if "cluster" in used:
            build.binaries()


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of Prometheus' programs."""
    return build.binaries(PROMETHEUS)


@pytest.fixture(scope="session")
def scene(
    cluster: Cluster, programs: Path, operator_user: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    document = partial(scripted_job, make_pipeline(tmp_path_factory.mktemp("pipeline")))
    with begin(cluster, operator_user, document, tmp_path_factory.mktemp("scene")) as made:
        yield made
