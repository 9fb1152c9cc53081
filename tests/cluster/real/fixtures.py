"""pytest's fixture of a cluster with real nodes; a conftest.py imports it beside those of tests.cluster.fixtures."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.cluster import build
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.cluster import real_cluster as run_real_cluster
from tests.cluster.real.machine import check
from tests.cluster.real.programs import UnfitError, installed


def prepare() -> None:
    """Builds and fetches what nodes need, before the first test and its timeout, on a machine that can run them."""
    with contextlib.suppress(UnfitError):  # the fixture says it
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
