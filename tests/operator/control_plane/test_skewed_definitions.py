"""Definitions and rights that are removed and restored, and objects that the operator does not understand."""

import json
from pathlib import Path

from tailorpo_operator.api import crd, naming
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tests.cluster.api import Cluster, Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import ApiProxy
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job

JOBS = f"/apis/{GROUP}/{VERSION}/{PLURAL}"


def test_a_definition_that_goes_and_comes_back(
    control_plane: ControlPlane, kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    with OperatorProcess(alone, tmp_path / "log", "--resync-seconds=0.5") as operator:
        Watched(kubectl, pod_driver, job("first")).run(1)
        kubectl("delete", f"crd/{PLURAL}.{GROUP}")
        try:
            until(lambda: "cannot list TailorPOJobs" in operator.log.read_text(), "it says what is missing")
        finally:
            kubectl.apply(crd.definition())
        until(lambda: kubectl("get", "tpj") == "", "jobs can be applied again")
        Watched(kubectl, pod_driver, job("second")).run(1)
        assert operator.running


def test_rights_that_go_and_come_back(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    with ApiProxy(alone, tmp_path) as proxy, OperatorProcess(proxy.kubeconfig, tmp_path / "log") as operator:
        first = Watched(kubectl, pod_driver, job("first"))
        first.run(1)
        proxy.rule = lambda asked: 403 if asked.path == JOBS else 0
        proxy.cut()
        until(lambda: "begins anew" in operator.log.read_text(), "kopf has given up")
        first.finish(1)  # it continues with the jobs in its cache
        proxy.rule = lambda asked: 0
        Watched(kubectl, pod_driver, job("second")).run(1)
        assert operator.running


def test_a_status_that_it_does_not_understand(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """For example of a newer operator, before a downgrade to this one."""
    strange = Watched(kubectl, pod_driver, job("strange", runPolicy={"suspend": True}))
    strange.phase("Suspended")
    condition = {"type": "Enchanted", "status": "True", "reason": "Spell", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"status": {"phase": "Pending", "conditions": [condition]}}
    kubectl("patch", "tpj", "strange", "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")
    until(lambda: "status.conditions" in dict(strange.events()).get("NotUnderstood", ""), "it says so")
    Watched(kubectl, pod_driver, job("plain")).run(1)
    assert strange.status["conditions"] == [condition]
    assert operator.running


def test_a_pod_that_is_none_of_ours(
    cluster: Cluster, kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    """A user who may create pods may give them any label."""
    metadata = {
        "name": "odd",
        "labels": {naming.JOB: "other", naming.ATTEMPT: "first"},
        "annotations": {"batch.kubernetes.io/job-completion-index": "none"},
    }
    container = {"name": "any", "image": "example.invalid/any:1"}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    with WarmOperator(alone, tmp_path / "log"):
        Watched(kubectl, pod_driver, job()).run(1)


def test_a_stop_while_the_api_server_is_away(alone: Path, tmp_path: Path) -> None:
    """One SIGTERM is all that a kubelet sends."""
    with ApiProxy(alone, tmp_path) as proxy:
        operator = OperatorProcess(proxy.kubeconfig, tmp_path / "log").start()
        until(lambda: operator.ask("/readyz")[0] == 200, "it is ready")
        proxy.rule = lambda asked: 403
        proxy.cut()
        until(lambda: "begins anew" in operator.log.read_text(), "kopf has given up")
        assert operator.stop() == 0
        assert operator.logged()[-1]["message"] == "stopped"
