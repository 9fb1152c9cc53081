"""The children at a real API server: taken under strict validation, stored as sent, and made into pods."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children.indexed_job import attempt, service
from tailorpo_trainer.spec.pod_template import Template
from tests.cluster.api import Cluster, Kubectl, KubectlError
from tests.cluster.waiting import until
from tests.documents import GOOD

IMAGE = "trainer:1"
SPREAD = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
MINE = {"labelSelector": {"matchLabels": {"tailorpo.dev/job": "vivid"}}}
NODES = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100"]}]}

WHOLE: dict[str, Any] = {
    "image": "registry:5000/a@sha256:" + "0" * 64,
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"example.com/team": "x", "stage": ""},
    "annotations": {"example.com/note": "any text: é"},
    "resources": {
        "limits": {"nvidia.com/gpu": 1, "memory": "16Gi"},
        "requests": {"cpu": "500m"},
        "claims": [{"name": "gpu"}],
    },
    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpus"}],
    "env": [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "mode"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "a.b", "key": "tls.crt", "optional": True}}},
    ],
    "envFrom": [{"prefix": "A_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "c", "optional": False}}],
    "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "x"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "10Gi"}},
    ],
    "volumeMounts": [
        {"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "a"},
        {"name": "scratch", "mountPath": "/scratch"},
    ],
    "shmSize": "2Gi",
    "modelCache": {"claimName": "models", "mountPath": "/models"},
    "hubToken": {"name": "hub", "key": "token"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [
        {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        {"key": "spot", "operator": "Equal", "value": "on-demand"},
    ],
    "affinity": {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [NODES]}},
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname", **MINE}]
        },
    },
    "topologySpreadConstraints": [{**SPREAD, **MINE}],
    "serviceAccountName": "trainer",
    "runtimeClassName": "nvidia",
    "hostNetwork": True,
    "securityContext": {"runAsUser": 1000},
    "podSecurityContext": {"fsGroup": 1000},
}


def job(namespace: str, **parts: Any) -> Job:
    return Job(metadata={"name": "vivid", "namespace": namespace}, spec=GOOD[0]["spec"] | parts)


def made(of: Job) -> list[dict[str, Any]]:
    return [child for child in (service(of), attempt(of, 1, IMAGE)) if child]


def missing(sent: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Where something that was sent is not what is stored; the API server may add to it."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            yield from missing(value, (stored or {}).get(key), f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        for number, pair in enumerate(zip(sent, stored, strict=True)):
            yield from missing(*pair, f"{path}[{number}]")
    elif sent != stored and not (isinstance(sent, int) and stored == str(sent)):  # an amount
        yield f"{path}: {sent!r} became {stored!r}"


def test_the_probe_sees_what_is_lost() -> None:
    sent = {"a": [{"b": 1, "c": "x"}], "d": {"e": {}}}
    assert list(missing(sent, {"a": [{"b": "1", "c": "x", "z": 0}], "d": {"e": {}}})) == []
    assert list(missing(sent, {"a": [{"b": 1}]})) == [".a[0].c: 'x' became None"]


GANG = ".spec.scheduling."
"""Dropped by a server whose feature gates are as Kubernetes 1.37 has them."""

DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"workers": 2, "processesPerWorker": 2},
    {"workers": 2, "template": WHOLE, "scheduling": {"queueName": "research", "schedulerName": "mine"}},
    {"workers": 2, "template": {key: value for key, value in WHOLE.items() if "ecurityContext" not in key}},
    {
        "prompts": {"configMapKeyRef": {"name": "a"}},
        "evaluation": {"prompts": {"configMapKeyRef": {"name": "b", "key": "prompts.txt"}}},
        "checkpoint": {"storage": "s3://a/b", "secretName": "s3"},
        "template": {"modelCache": {"hostPath": "/srv/models"}},
    },
]


def test_the_whole_template_is_whole() -> None:
    assert set(WHOLE) == {field.alias or name for name, field in Template.model_fields.items()}


@pytest.mark.parametrize("parts", DOCUMENTS, ids=["least", "gang", "whole", "hardened", "prompts"])
def test_what_was_sent_is_what_is_stored(cluster: Cluster, parts: dict[str, Any]) -> None:
    kubectl = cluster.kubectl()
    for child in made(job("default", **parts)):
        stored = kubectl("create", "--dry-run=server", "--validate=strict", "--output=json", "--filename=-",
                         stdin=json.dumps(child))  # fmt: skip
        lost = [each for each in missing(child, json.loads(stored)) if not each.startswith(GANG)]
        assert lost == []


@pytest.fixture
def restricted(kubectl: Kubectl) -> Kubectl:
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    return kubectl


def test_pods_are_made_where_only_hardened_ones_may_be(restricted: Kubectl) -> None:
    parts = {"workers": 2, "template": {"modelCache": {"claimName": "models"}, "shmSize": "1Gi"}}
    restricted.apply(*made(job(restricted.namespace, **parts)))
    selector = f"--selector={naming.JOB}=vivid,{naming.ATTEMPT}=1"

    def pods() -> Any:
        found = restricted.json("get", "pods", selector)["items"]
        return found if len(found) == 2 else None

    found = until(pods, "both pods are made")
    assert {each["spec"]["hostname"] for each in found} == {"vivid-0001-0", "vivid-0001-1"}
    assert {each["spec"]["subdomain"] for each in found} == {naming.RENDEZVOUS}
    for each in found:
        [container] = each["spec"]["containers"]
        first = f"--master-addr=vivid-0001-0.{naming.RENDEZVOUS}"
        assert {"--node-rank=$(JOB_COMPLETION_INDEX)", first} <= set(container["args"])
        assert "JOB_COMPLETION_INDEX" in {variable["name"] for variable in container["env"]}
        assert not [mount for mount in container["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
        document = json.loads(each["metadata"]["annotations"][naming.DOCUMENT])
        assert document["metadata"] == {"name": "vivid", "namespace": restricted.namespace}


def test_a_namespace_that_is_restricted_refuses_the_nodes_network(restricted: Kubectl) -> None:
    """Else the test above would show nothing."""
    restricted.apply(*made(job(restricted.namespace, template={"hostNetwork": True})))
    until(lambda: "violates PodSecurity" in restricted("describe", "job", "vivid-0001"), "the pod is refused")


def test_a_second_entry_of_one_name_is_refused(cluster: Cluster) -> None:
    """Why the user's variables and mounts replace ours."""
    [child] = made(job("default"))
    [container] = child["spec"]["template"]["spec"]["containers"]
    container["volumeMounts"].append({"name": "tailorpo-tmp", "mountPath": "/tmp"})
    with pytest.raises(KubectlError, match="must be unique"):
        cluster.kubectl()("create", "--dry-run=server", "--filename=-", stdin=json.dumps(child))
