"""`kubectl apply -k manifests/` on real nodes: the operator works in a pod of its own, with the rights that it has."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tailorpo_operator.api import naming
from tests.cluster.api import Kubectl
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.images import TRAINER
from tests.cluster.waiting import until
from tests.operator.operating import Followed, job

MANIFESTS = Path(__file__).parents[2] / "manifests"
OPERATOR = "deployment/tailorpo-operator"
SELECTOR = "--selector=app.kubernetes.io/name=tailorpo-operator"
TIMEOUT_SECONDS = 180.0  # seconds that a busy machine may need until a pod of the operator is ready
# Replaces the trainer: it ends at a request, and handles SIGTERM.
STAND_IN = "#!/bin/sh\ntrap 'exit 75' TERM\nuntil [ -e /tmp/done ]; do sleep 0.1; done\n"

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def installed(real_cluster: RealCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """kubectl in the operator's namespace, once all of `manifests/` is applied with the image that nodes have here."""
    overlay = tmp_path_factory.mktemp("overlay")
    name, tag = TRAINER.rsplit(":", 1)
    kustomization = {
        "resources": [os.path.relpath(MANIFESTS, overlay.resolve())],
        "images": [{"name": "tailorpo-operator", "newName": name, "newTag": tag}],
    }
    YAML(typ="safe").dump(kustomization, overlay / "kustomization.yaml")
    kubectl = real_cluster.kubectl("tailorpo-system")
    kubectl("apply", "--server-side", "--kustomize", str(overlay))
    kubectl("wait", "--for=condition=Available", OPERATOR, f"--timeout={TIMEOUT_SECONDS:.0f}s")
    yield kubectl
    kubectl("delete", "--kustomize", str(overlay))


def operators(kubectl: Kubectl) -> list[Fields]:
    """Its pods that are not being deleted."""
    found = kubectl.json("get", "pods", SELECTOR)["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def messages(log: str) -> list[str]:
    """Of a log that is JSON in every line."""
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines), lines
    return [line["message"] for line in lines]


def test_jobs_run_and_a_rollout_disturbs_none(installed: Kubectl, kubectl: Kubectl) -> None:
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stand-in"}, "data": {"tailorpo": STAND_IN}}
    kubectl.apply(script)
    template = {
        "image": TRAINER,
        "env": [{"name": "PATH", "value": "/stand-in:/usr/bin:/bin"}],
        "volumes": [{"name": "stand-in", "configMap": {"name": "stand-in", "defaultMode": 0o755}}],
        "volumeMounts": [{"name": "stand-in", "mountPath": "/stand-in"}],
    }
    followed = Followed(kubectl, job(template=template), TIMEOUT_SECONDS)
    followed.phase("Running")
    [gang] = followed.attempt_jobs()

    [before] = operators(installed)
    old = before["metadata"]["name"]
    lease = installed.json("get", "lease", "tailorpo-operator")["spec"]
    assert old in lease["holderIdentity"]
    with installed.popen("logs", "--follow", old) as following:
        installed("rollout", "restart", OPERATOR)
        installed("rollout", "status", OPERATOR, f"--timeout={TIMEOUT_SECONDS:.0f}s")
        logged = messages(following.communicate(timeout=TIMEOUT_SECONDS)[0])
    assert "leading" in logged
    assert logged[-2:] == ["stopping", "stopped"]

    [after] = operators(installed)
    new = after["metadata"]["name"]
    assert new != old

    def handed_over() -> bool:
        spec = installed.json("get", "lease", "tailorpo-operator")["spec"]
        return new in spec.get("holderIdentity", "") and spec["leaseTransitions"] > lease["leaseTransitions"]

    until(handed_over, "the new pod has the lease")
    until(lambda: "leading" in messages(installed("logs", OPERATOR)), "the new pod says so")
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0

    for pod in kubectl.json("get", "pods", f"--selector={naming.JOB}={followed.name}")["items"]:
        kubectl("exec", pod["metadata"]["name"], "--", "touch", "/tmp/done")
    kubectl("wait", "--for=condition=Succeeded", f"tpj/{followed.name}", f"--timeout={TIMEOUT_SECONDS:.0f}s")
    assert (followed.status["restarts"], followed.attempt_jobs()[0]["metadata"]["uid"]) == (0, gang["metadata"]["uid"])
    about = [json.loads(line) for line in installed("logs", OPERATOR).splitlines()]
    assert {"message", "job", "attempt"} <= set(next(line for line in about if line["message"].startswith("Succeeded")))
