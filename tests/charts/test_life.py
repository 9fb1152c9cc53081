"""The life of a release on a real API server, with the operator under exactly the rights that the chart grants."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tailorpo_operator.api import naming
from tailorpo_trainer.errors import ExitCode
from tests.charts.releases import CHART, NAMESPACE, ROOT, Release, footprint, identity, remove_all, rendered
from tests.cluster.api import Kubectl, KubectlError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import Helm, HelmError
from tests.cluster.pods import PodDriver
from tests.operator.operating import Watched, job, last_words


def check_examples(notes: str, kubectl: Kubectl) -> None:
    """The API server takes the first job of the notes, and the example of Artifact Hub."""
    command = re.search(r"kubectl (apply -f -) <<EOF\n(.*?)\n   EOF\n", notes, re.DOTALL)
    assert command is not None
    about = YAML(typ="safe").load(CHART / "Chart.yaml")["annotations"]
    example = about["artifacthub.io/crdsExamples"].replace("- apiVersion", "  apiVersion", 1)
    for text in (command[2], example):
        kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=textwrap.dedent(text))


def test_from_the_installation_to_the_next_one(release: Release, kubectl: Kubectl, pod_driver: PodDriver) -> None:
    notes = release.install("--set=global.imageRegistry=registry.example.com")
    check_examples(notes, kubectl)
    live = Watched(kubectl, pod_driver, job("live"))
    with release.operator():
        done = Watched(kubectl, pod_driver, job("done"))
        done.run(1)
        done.finish(1)
        live.run(1)
        live.phase("Running")
    [container] = live.pods(1)[0].spec.containers
    assert container.image == f"registry.example.com/{naming.IMAGE}"
    before = footprint(live)
    assert before["restarts"] == 0

    release.upgrade("--reuse-values", "--set=replicaCount=2", "--set=extraArgs={--requests-per-second=500}")
    deployment = release.deployment()
    assert deployment["status"]["readyReplicas"] == 2
    with release.operator():
        Watched(kubectl, pod_driver, job("second")).run(1)  # the operator acts, and not on the live job
        assert footprint(live) == before

    release.rollback(1)
    assert release.deployment()["status"]["readyReplicas"] == 1
    with release.operator():
        Watched(kubectl, pod_driver, job("third")).run(1)
        assert footprint(live) == before

    assert "tailorpojobs.tailorpo.dev" in release.uninstall()  # it says what it has kept
    left = release.kubectl("get", "all,roles,rolebindings,serviceaccounts,clusterroles,clusterrolebindings",
        "--selector=app.kubernetes.io/instance=tailorpo", "--output=name")  # fmt: skip
    assert left == ""
    release.kubectl("delete", "namespace", release.namespace, "--timeout=60s")
    assert footprint(live) == before

    release.install()
    with release.operator():
        Watched(kubectl, pod_driver, job("fourth")).run(1)
        assert footprint(live) == before
        live.finish(1)


def with_field(folder: Path, name: str) -> Path:
    """A copy of the chart, whose definition has one more field in the spec."""
    chart = folder / "tailorpo"
    shutil.copytree(CHART, chart)
    template = chart / "templates" / "crd.yaml"
    text = template.read_text()
    place = re.search(r"^( +)spec:\n(?: +.*\n)*?( +)properties:\n", text[text.index("openAPIV3Schema") :], re.MULTILINE)
    assert place is not None
    end = text.index("openAPIV3Schema") + place.end()
    template.write_text(f"{text[:end]}{place[2]}  {name}: {{type: string, maxLength: 20}}\n{text[end:]}")
    return chart


def test_a_definition_with_a_new_field(
    release: Release, kubectl: Kubectl, pod_driver: PodDriver, tmp_path: Path
) -> None:
    release.install()
    live = Watched(kubectl, pod_driver, job("live"))
    with release.operator():
        live.run(1)
        before = footprint(live)
    with pytest.raises(KubectlError, match="unknown field"):
        kubectl.apply(job("later", mood="happy"))
    release.upgrade(chart=with_field(tmp_path, "mood"))
    kubectl.apply(job("later", mood="happy"))
    assert kubectl.json("get", "tpj", "later")["spec"]["mood"] == "happy"
    with release.operator():
        assert footprint(live) == before
        live.finish(1)


def test_over_the_manifests(
    control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver, helm: Helm, tmp_path: Path
) -> None:
    release = Release(control_plane, pod_driver, tmp_path, "tailorpo", NAMESPACE)
    try:
        over_the_manifests(release, kubectl, pod_driver)
    finally:
        remove_all(control_plane, NAMESPACE)


def over_the_manifests(release: Release, kubectl: Kubectl, pod_driver: PodDriver) -> None:
    release.kubectl("apply", "--server-side", "--kustomize", str(ROOT / "manifests"))
    release.kubectl("wait", "--for=condition=Established", "crd/tailorpojobs.tailorpo.dev", "--timeout=60s")
    live = Watched(kubectl, pod_driver, job("live"))
    with release.operator():
        live.run(1)
        before = footprint(live)
    with pytest.raises(HelmError, match="exists and cannot be imported into the current release"):
        release.install()
    release.install("--take-ownership")
    assert footprint(live) == before
    with release.operator():
        live.finish(1)
    with pytest.raises(HelmError, match='conflict with "kubectl"'):
        release.upgrade("--set=replicaCount=2")
    release.upgrade("--set=replicaCount=2", "--force-conflicts")
    assert release.deployment()["spec"]["replicas"] == 2


OWNED = 'key "meta.helm.sh/release-name" must equal "other": current value is "tailorpo"'


def test_a_second_release_is_refused(release: Release, control_plane: ControlPlane, pod_driver: PodDriver) -> None:
    release.install()
    second = Release(control_plane, pod_driver, release.folder, "other", "other-system")
    try:
        for arguments in (
            (),
            ("--set=crds.enabled=false",),
            ("--set=crds.enabled=false", "--set=rbac.aggregate=false"),
            ("--set=crds.enabled=false", "--set=rbac.aggregate=false", "--set=fullnameOverride=third"),
        ):
            with pytest.raises(HelmError) as caught:
                second.install(*arguments)
            assert OWNED in str(caught.value)
            assert second.helm("list", "--short") == ""
    finally:
        remove_all(control_plane, "other-system")


def missing(wanted: Any, live: Any, path: str = "") -> list[str]:
    """Paths at which a live object lacks or changes what was rendered: what Argo CD would report as a difference."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return [each for key in wanted for each in missing(wanted[key], live.get(key), f"{path}/{key}")]
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        pairs = enumerate(zip(wanted, live, strict=True))
        return [each for index, pair in pairs for each in missing(*pair, f"{path}/{index}")]
    return [] if wanted == live else [path]


def test_what_is_live_is_what_was_rendered(release: Release, helm: Helm, kubectl: Kubectl) -> None:
    """Nothing is rendered that the API server drops or writes in another way."""
    values = YAML(typ="safe").load(CHART / "ci" / "full-values.yaml")
    values |= {"watchNamespaces": [kubectl.namespace], "metrics": {"dashboards": {"enabled": True}}}
    values |= {"global": {}, "nodeSelector": {}, "topologySpreadConstraints": []}  # else no pod finds a node here
    release.install(f"--set-json={json.dumps(values)}")
    for each in rendered(helm, CHART, values, f"--namespace={release.namespace}"):
        if "helm.sh/hook" not in each["metadata"].get("annotations", {}):
            kind, namespace, name = identity(each)
            live = release.kubectl.json("get", kind, name, *([f"--namespace={namespace}"] if namespace else []))
            assert missing(each, live) == [], name


def test_helm_test(
    release: Release, control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver, tmp_path: Path
) -> None:
    """The test's script runs as a process here, with the rights of its pod."""
    release.install("--set=helmTest.enabled=true", f"--set=watchNamespaces={{{kubectl.namespace}}}")
    with release.operator(), ThreadPoolExecutor(1) as pool:
        tested = pool.submit(release.helm, "test", release.name, "--timeout=120s")
        [pod] = pod_driver.scheduled(release.namespace, 1, "app.kubernetes.io/component=test")
        pod_driver.run(pod)
        [container] = pod.spec.containers
        user = YAML(typ="safe").load(control_plane.service_account(release.namespace, pod.spec.service_account_name))
        (tmp_path / "token").write_text(user["users"][0]["user"]["token"])
        (tmp_path / "ca.crt").write_bytes(control_plane.endpoint.authority)
        _, _, port = control_plane.endpoint.url.rpartition(":")
        script = subprocess.Popen(
            [sys.executable, *container.command[1:], *container.args[:-1], str(tmp_path)],
            env=os.environ | {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port},
            stdout=subprocess.PIPE,
            text=True,
        )
        [worker] = pod_driver.scheduled(kubectl.namespace, 1, f"{naming.JOB}={container.args[0]}")
        pod_driver.run(worker)
        pod_driver.end(worker, ExitCode.DONE, last_words(0, step=1, of=1))
        said, _ = script.communicate(timeout=60)
        assert script.returncode == 0, said
        assert "Succeeded" in said
        pod_driver.end(pod)
        assert "Phase:          Succeeded" in tested.result()
    assert kubectl("get", "tpj", "--output=name") == ""
