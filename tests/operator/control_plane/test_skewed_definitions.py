"""Definitions and rights that are removed and restored, and objects that the operator does not understand."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tailorpo_operator.api import crd, naming
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tests.cluster.api import Cluster, Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import ApiProxy
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job, last_words

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


def test_a_status_of_a_newer_operator(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    """As before a downgrade to this one. It goes on, unless the newer one has ended the job in a way of its own."""
    condition = {"type": "Enchanted", "status": "True", "reason": "Spell", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    for name, fields in [("going", {}), ("ended", {"completionTime": "2026-01-01T00:00:00Z"})]:
        Watched(kubectl, pod_driver, job(name, runPolicy={"suspend": True})).phase("Suspended")
        status = {"status": {"phase": "Thinking", "conditions": [condition], **fields}}
        kubectl("patch", "tpj", name, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")
    going, ended = (Watched(kubectl, pod_driver, job(name)) for name in ("going", "ended"))
    going.run(1)
    until(lambda: "status.conditions" in dict(ended.events()).get("NotUnderstood", ""), "it says so")
    assert ended.status["conditions"] == [condition]
    assert operator.running


Change = Callable[[dict[str, Any]], object]


@contextmanager
def served(kubectl: Kubectl, change: Change) -> Iterator[None]:
    """A definition whose schema was changed, until the API server serves it; and afterwards the usual one."""

    def serve(change: Change, marker: str) -> None:
        raw = crd.definition()
        schema = raw["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        change(schema["properties"])
        schema["properties"]["spec"]["description"] = marker
        kubectl.apply(raw)
        path = f"/openapi/v3/apis/{GROUP}/{VERSION}"
        until(lambda: marker in kubectl("get", f"--raw={path}"), "the definition is served")
        document = json.dumps(job("any", workers=1))

        def filled_in() -> bool:
            stored = json.loads(kubectl("create", "--dry-run=server", "-ojson", "--filename=-", stdin=document))
            return ("newKnob" in stored["spec"]["training"]) == (marker == "Newer.")

        until(filled_in, "the definition is used")

    serve(change, "Newer." if change is newer else "Older.")
    try:
        yield
    finally:
        serve(lambda schema: None, "Current.")


def newer(schema: dict[str, Any]) -> None:
    """Fields with defaults, a value more, and no rule that would know them."""
    spec = schema["spec"]["properties"]
    knob = {"type": "integer", "default": 7}
    spec["training"]["properties"]["newKnob"] = knob
    spec["training"]["properties"]["precision"]["enum"].append("fp8")
    spec["rewards"]["items"]["properties"]["newKnob"] = knob
    level = {"level": {"type": "integer", "default": 2}}
    spec["section"] = {"type": "object", "default": {}, "properties": level}
    del spec["rewards"]["x-kubernetes-validations"]


def older(schema: dict[str, Any]) -> None:
    """It keeps less of a status than this operator writes, and has fewer fields."""
    status = schema["status"]["properties"]
    del status["reason"], status["acceleratorSeconds"]
    del status["attempts"]["items"]["properties"]["ready"]
    del status["checkpoint"]
    del schema["spec"]["properties"]["runPolicy"]["properties"]["startDeadlineSeconds"]


def is_not_understood(watched: Watched) -> bool:
    assert watched.status["reason"] == "NotUnderstood", watched.status
    return "NotUnderstood" in dict(watched.events())


def test_a_newer_definition(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    """What has its default asks for nothing; what asks for something is said, and holds no other job up."""
    old = Watched(kubectl, pod_driver, job("old"))
    with OperatorProcess(alone, tmp_path / "log", "--resync-seconds=0.5") as operator:
        first = old.run(1)
        with served(kubectl, newer):
            pod_driver.end(first[1], 70, last_words(70))
            pod_driver.end(first[0], 75, last_words(75))
            assert old.ended(1)["reason"] == "InternalError"
            again = old.run(2)
            Watched(kubectl, pod_driver, job("plain")).run(1)
            text = again[0].metadata.annotations[naming.DOCUMENT]
            assert "newKnob" not in text
            assert "section" not in text

            asks = Watched(kubectl, pod_driver, job("asks", training={"iterations": 100, "newKnob": 8}))
            value = Watched(kubectl, pod_driver, job("value", training={"iterations": 100, "precision": "fp8"}))
            for watched, words in [(asks, "spec.training.newKnob: 8: not known"), (value, "spec.training.precision: ")]:
                until(partial(is_not_understood, watched), f"{watched.name} is not understood")
                assert words in watched.status["message"]
                assert watched.status["phase"] == "Pending"
                assert watched.attempt_jobs() == []
            until(lambda: "operator_jobs_not_understood 2.0" in operator.ask("/metrics")[1], "the metric")
            old.finish(2)
            kubectl("delete", "tpj", "value")  # the current definition would refuse to keep it
        asks.run(1)  # its field is gone
        until(lambda: "operator_jobs_not_understood 0.0" in operator.ask("/metrics")[1], "the metric")


def test_an_older_definition(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    """What it does not keep is said once, and not written again and again."""

    def total(name: str, label: str = "") -> float:
        lines = operator.ask("/metrics")[1].splitlines()
        found = [line for line in lines if line.startswith(f"tailorpo_operator_{name}") and label in line]
        return sum(float(line.split()[-1]) for line in found)

    with served(kubectl, older), OperatorProcess(alone, tmp_path / "log", "--resync-seconds=0.2") as operator:
        large = {"resources": {"limits": {"nvidia.com/gpu": 64}}}
        stuck = Watched(kubectl, pod_driver, job("stuck", template=large))
        until(lambda: stuck.condition("PodsReady")["reason"] == "Unschedulable", "it says why")
        life = Watched(kubectl, pod_driver, job("life"))
        life.run(1)
        life.finish(1)
        assert "reason" not in stuck.status
        writes, reconciles = total("api_requests_total", 'verb="patch"'), total("reconcile_seconds_count")
        until(lambda: total("reconcile_seconds_count") >= reconciles + 10, "it reconciles again and again")
        assert total("api_requests_total", 'verb="patch"') == writes
        assert operator.log.read_text().count("keeps no status.reason") <= 1


def test_openshift_gives_each_namespace_its_users(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    names = {"kind": "SecurityContextConstraints", "plural": "securitycontextconstraints"}
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "security.openshift.io", "scope": "Cluster", "names": names, "versions": [version]}
    name = "securitycontextconstraints.security.openshift.io"
    kubectl.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
            "spec": spec,
        }
    )
    try:
        until(lambda: "security.openshift.io" in kubectl("get", "--raw=/apis"), "the group is served")
        with WarmOperator(alone, tmp_path / "log"):
            [first, _] = Watched(kubectl, pod_driver, job()).run(1)
        context = first.spec.security_context
        assert (context.run_as_user, context.run_as_group, context.fs_group) == (None, None, None)
        assert context.run_as_non_root is True
    finally:
        kubectl("delete", f"crd/{name}")


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
