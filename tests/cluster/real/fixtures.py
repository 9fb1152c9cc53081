"""pytest's fixtures of a cluster with real nodes; a conftest.py imports them beside those of tests.cluster.fixtures."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster import build
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.cluster import real_cluster as run_real_cluster
from tests.cluster.real.machine import check
from tests.cluster.real.node import Node
from tests.cluster.real.programs import UnfitError, installed


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds and fetches what nodes need before the first test that needs them, where it is seen, untimed."""
    if session.config.option.collectonly:
        return
    if any("real_cluster" in getattr(item, "fixturenames", ()) for item in session.items):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled(), contextlib.suppress(UnfitError):  # the fixture says it
            check()
            build.binaries()
            installed()


@pytest.fixture(scope="session")
def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster of our own with two real nodes; skips, with the reason, where this machine cannot run them."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(run_real_cluster(logs=tmp_path_factory.mktemp("real-cluster")))
        except UnfitError as error:
            pytest.skip(f"no real nodes here: {error}")
        yield running


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
