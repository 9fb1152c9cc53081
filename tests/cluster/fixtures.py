"""pytest's fixtures for tests against a real API server; a conftest.py imports what it wants.

`TAILORPO_TEST_KUBECONFIG=/path/to/kubeconfig` makes them use that cluster instead of a control plane of their own.
`make test KUBECONFIG=…` sets it. Plain KUBECONFIG is not heeded, so that no test ever touches a developer's cluster by
accident.
"""

import os
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster import build
from tests.cluster.api import Cluster, Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.control_plane import control_plane as run_control_plane
from tests.cluster.helm import HELM, Helm
from tests.cluster.pods import PodDriver
from tests.cluster.prometheus import PROMETHEUS
from tests.cluster.waiting import until

VARIABLE = "TAILORPO_TEST_KUBECONFIG"

PROGRAMS = {"cluster": build.SERVERS, "helm": HELM, "programs": PROMETHEUS}
"""What is built before the first test that uses a fixture of this name."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds programs before the first test that needs them: its progress is shown, and no timeout applies."""
    if session.config.option.collectonly:
        return
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    given = {"cluster"} if VARIABLE in os.environ else set()
    for name in PROGRAMS.keys() & used - given:
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            build.binaries(PROGRAMS[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to each failure the path of the servers' logs, and what the test's namespace held and was asked for.

    A failure that comes once in many runs, on a machine that nobody can enter, has to tell its cause itself.
    """
    report = yield
    values = getattr(item, "funcargs", {})
    plane, user = values.get("cluster"), values.get("kubectl")
    if report.failed and isinstance(plane, ControlPlane):
        report.sections.append(("control plane", f"logs of the servers and audit log: {plane.logs}"))
        if report.when == "call" and isinstance(user, Kubectl):
            report.sections.append((f"namespace {user.namespace}", _describe(user, plane)))
    return report


def _describe(kubectl: Kubectl, plane: ControlPlane) -> str:
    """Jobs, Jobs and pods of a namespace, and who wrote what in it, oldest first; its own errors are only shown."""
    try:
        jobs = kubectl("get", "tailorpojobs", "--output=yaml", "--ignore-not-found")
        children = kubectl("get", "jobs,pods", "--output=wide", "--show-labels", "--ignore-not-found")
        writes = [
            f"{each.user} {each.verb} {each.resource} {each.name}: {each.code}"
            for each in plane.audit.since(0)
            if each.writes and each.namespace == kubectl.namespace and each.resource != "events"
        ]
    except (AssertionError, OSError) as error:
        return f"could not be read: {error}"
    return "\n".join([jobs, children, *writes[-200:]])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of the session: a control plane of our own, unless the environment names another."""
    folder = tmp_path_factory.mktemp("cluster")
    if given := os.environ.get(VARIABLE):
        yield Cluster(Path(given), folder)
        return
    with run_control_plane(logs=folder) as plane:
        yield plane


@pytest.fixture(scope="session")
def control_plane(cluster: Cluster) -> ControlPlane:
    """The control plane of our own, for tests of its servers, users, audit log or Node objects."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip(f"needs a control plane of its own, and {VARIABLE} names a cluster")
    return cluster


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Iterator[client.ApiClient]:
    """A client of the Python package kubernetes, as administrator."""
    with cluster.api() as api:
        yield api


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """The name of a namespace for this test, deleted afterwards with what is in it."""
    core, name = client.CoreV1Api(api), f"test-{secrets.token_hex(4)}"
    core.create_namespace({"metadata": {"name": name}})

    def has_account() -> bool:
        accounts = core.list_namespaced_service_account(name).items
        return any(account.metadata.name == "default" for account in accounts)

    try:
        until(has_account, f"pods can be made in {name}")
        yield name
    finally:
        core.delete_namespace(name)


@pytest.fixture
def kubectl(cluster: Cluster, namespace: str) -> Kubectl:
    """kubectl as administrator, in this test's namespace."""
    return cluster.kubectl(namespace)


@pytest.fixture
def pod_driver(cluster: Cluster, namespace: str) -> Iterator[PodDriver]:
    """Plays the kubelets of two nodes of this test."""
    user = cluster.user("pod-driver", ["system:masters"]) if isinstance(cluster, ControlPlane) else None
    with cluster.api(user) as api, PodDriver(api, among_others=user is None) as driver:
        for number in range(2):
            driver.add_node(f"{namespace}-node-{number}")
        yield driver


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster: for `lint` and `template`."""
    return Helm(tmp_path_factory.mktemp("helm"))
