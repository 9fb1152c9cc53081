"""Where a release acts and by which rights: some namespaces, a parent chart, what the audit log says of the rights."""

import shutil
from itertools import product
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tailorpo_trainer.errors import ExitCode
from tests.charts.releases import CHART, Release, remove_all, rendered
from tests.cluster.api import Kubectl
from tests.cluster.audit import Request
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import Helm, HelmError
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import Watched, job, last_words

Right = tuple[str, str, str]
"""Resource with its subresource, name or "*", verb."""


def refused(requests: list[Request]) -> list[Request]:
    return [each for each in requests if each.code in (401, 403)]


def test_some_namespaces(
    release: Release, control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver
) -> None:
    elsewhere = control_plane.kubectl("default")
    release.install(f"--set=watchNamespaces={{{kubectl.namespace}}}")
    kinds = "clusterroles,clusterrolebindings"
    assert release.kubectl("get", kinds, "--selector=app.kubernetes.io/name=tailorpo-operator", "--output=name") == ""
    mark = control_plane.audit.mark()
    other = Watched(elsewhere, pod_driver, job("other"))
    with release.operator():
        watched = Watched(kubectl, pod_driver, job("animals"))
        watched.run(1)
        watched.finish(1)
        assert "status" not in other.get()
    asked = [each for each in control_plane.audit.since(mark) if each.user == release.user]
    assert refused(asked) == []
    assert {each.namespace for each in asked if each.resource} == {kubectl.namespace, release.namespace}


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A chart of which ours is a part."""
    folder = tmp_path / "platform"
    shutil.copytree(CHART, folder / "charts" / "tailorpo")
    version = YAML(typ="safe").load(CHART / "Chart.yaml")["version"]
    part = {"name": "tailorpo", "version": version, "repository": "", "condition": "tailorpo.enabled"}
    about = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [part]}
    YAML(typ="safe").dump(about, folder / "Chart.yaml")
    values = {"global": {"imageRegistry": "m.example", "anything": {"else": 1}}, "tailorpo": {"enabled": True}}
    YAML(typ="safe").dump(values, folder / "values.yaml")
    return folder


def test_as_a_part_of_another_chart(
    release: Release, helm: Helm, parent: Path, control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver
) -> None:
    assert rendered(helm, parent, {"tailorpo": {"enabled": False}}) == []
    with pytest.raises(HelmError, match="additional properties 'replicas' not allowed"):
        rendered(helm, parent, {"tailorpo": {"replicas": 2}})
    platform = Release(control_plane, pod_driver, release.folder, "platform", "platform")
    try:
        platform.install("--set=tailorpo.replicaCount=2", chart=parent)
        assert platform.deployment()["metadata"]["name"] == "platform-tailorpo-operator"
        with platform.operator():
            watched = Watched(kubectl, pod_driver, job())
            pods = watched.run(1)
            assert pods[0].spec.containers[0].image.startswith("m.example/tailorpo-trainer:")
            watched.finish(1)
        platform.uninstall()
    finally:
        remove_all(control_plane, "platform")


ONLY_AFTER_FAULTS: dict[Right, str] = {
    ("jobs", "*", "get"): "a Job is read by its name if its creation is answered by AlreadyExists: the answer to an "
    "earlier request was lost",
    ("services", "tailorpo-rendezvous", "get"): "the same for the Service",
}
"""Granted, and unused in a life without faults of the network; `tests/operator/control_plane` uses them."""


def rules(release: Release) -> set[Right]:
    """What the roles of the operator grant."""
    found = []
    for kind in ("clusterrole", "role"):
        found += release.kubectl.json("get", kind, "--selector=app.kubernetes.io/name=tailorpo-operator")["items"]
    return {
        (resource, name, verb)
        for role in found
        for rule in role["rules"]
        for resource, name, verb in product(rule["resources"], rule.get("resourceNames", ["*"]), rule["verbs"])
    }


def used(requests: list[Request], granted: set[Right]) -> set[Right]:
    """The rights that these requests needed: of those that would do, the narrowest."""
    found = set()
    for each in requests:
        named = (each.resource, each.name or selected(each), each.verb)
        found.add(named if named in granted else (each.resource, "*", each.verb))
    return found


def selected(request: Request) -> str:
    """The name that a list or a watch asks for by a field selector."""
    return request.path.partition("fieldSelector=metadata.name%3D")[2].partition("&")[0]


def test_what_is_granted_is_used_and_nothing_is_refused(
    release: Release, control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver
) -> None:
    """All phases of jobs, without faults of the network: the audit log holds every request of the operator."""
    release.install()
    granted = rules(release)
    mark = control_plane.audit.mark()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    policy = {"terminationGracePeriodSeconds": 1}
    with release.operator():
        kubectl.apply(quota)
        waiting = Watched(kubectl, pod_driver, job("waiting"))
        until(lambda: waiting.condition("PodsReady")["reason"] == "QuotaExceeded", "a quota forbids pods")
        kubectl("delete", "resourcequota", "none")
        kubectl("delete", "tpj", "waiting")

        lost = Watched(kubectl, pod_driver, job("lost", runPolicy=policy, workers=1))
        [pod] = lost.run(1)
        pod_driver.lose(pod.spec.node_name)
        assert lost.ended(1)["reason"] == "NodeLost"
        pod_driver.recover(pod.spec.node_name)
        [retried] = lost.run(2)
        pod_driver.end(retried, ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
        lost.run(3)
        lost.finish(3)

        brief = Watched(kubectl, pod_driver, job("brief", runPolicy={"ttlSecondsAfterFinished": 1}))
        for pod in brief.run(1):
            pod_driver.end(pod, ExitCode.DONE, last_words(0, step=100))
        until(lambda: "brief" not in kubectl("get", "tpj", "--output=name"), "the job is deleted after its time")
        until(lambda: kubectl("get", "services", "--output=name") == "", "the last job of several workers has ended")
    requests = [each for each in control_plane.audit.since(mark) if each.user == release.user and each.resource]
    assert refused(requests) == []
    needed = used(requests, granted)
    assert needed <= granted
    assert granted - needed == set(ONLY_AFTER_FAULTS)
