"""Valid documents that use every field, and mutations of them, for the trainer's parser and for the API server."""

import random
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from tailorpo_trainer.spec.job import Prompts, Spec
from tailorpo_trainer.spec.pod_template_rules import ONE_OF
from tailorpo_trainer.spec.violations import alias

TEMPLATE = {
    "image": "registry:5000/a@sha256:0",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"example.com/team": "x", "stage": ""},
    "annotations": {"example.com/note": "any text: \u2028 é"},
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
        {"name": "tmp", "emptyDir": {"a": None}},
    ],
    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "a"}],
    "shmSize": "2Gi",
    "modelCache": {"claimName": "models", "mountPath": "/models"},
    "hubToken": {"name": "hub", "key": "token"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [
        {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
        {"key": "spot", "operator": "Equal", "value": "on-demand"},
    ],
    "affinity": {"nodeAffinity": {"x": [1]}, "podAffinity": {"y": None}, "podAntiAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1}],
    "serviceAccountName": "trainer",
    "runtimeClassName": "nvidia",
    "hostNetwork": True,
    "securityContext": {"runAsUser": 1000},
    "podSecurityContext": {"fsGroup": 1000},
}

GOOD: list[dict[str, Any]] = [
    {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "vivid", "labels": {"a": "b"}},
        "spec": {"prompts": {"builtin": "animals"}, "rewards": [{"name": "colourfulness"}], "method": method, **rest},
    }
    for method, rest in [
        ({"name": "tailorpo"}, {}),
        (
            {"name": "tailorpo-g", "beta": 0.5, "rewardGuidance": {"fraction": 0.1, "strength": 2.0, "target": 1}},
            {
                "model": {
                    "name": "a/b",
                    "revision": "main",
                    "variant": "fp16",
                    "scoringDecoder": {"name": "tiny-animals"},
                },
                "lora": {"rank": 4, "alpha": 4, "targetModules": ["to_q"], "initial": "lora.safetensors"},
                "sampling": {"steps": 1000, "trainedSteps": {"count": 3, "choose": "early"}, "height": 64, "width": 64},
                "optimizer": {"learningRate": 1e-3, "schedule": "cosine", "emaDecay": 0.9},
            },
        ),
        (
            {"name": "spo", "candidates": 3, "threshold": 0, "continueFrom": "winner"},
            {
                "rewards": [
                    {"name": "http", "endpoints": ["http://a:1", "https://b"], "timeoutSeconds": 3, "retries": 0},
                    {"name": "mine", "weight": -1, "parameters": {"a": "1"}},
                ],
                "prompts": {"list": ["a cat", "ein Bär"]},
                "workers": 2,
                "template": TEMPLATE,
                "scheduling": {"queueName": "research", "priorityClassName": "low", "gang": "Required"},
                "runPolicy": {"backoffLimit": 1, "suspend": True, "activeDeadlineSeconds": 60},
            },
        ),
        (
            {"name": "ddpo", "clipRange": 1e-4, "advantageClip": 10},
            {
                "prompts": {"configMapKeyRef": {"name": "a", "key": "b"}},
                "sampling": {"timestepSpacing": "trailing"},
                "training": {
                    "iterations": 5,
                    "promptsPerIteration": 1024,
                    "seed": 3,
                    "precision": "bf16",
                    "vaeSlicing": True,
                    "microBatchSize": 2,
                },
                "evaluation": {
                    "everyIterations": 0,
                    "prompts": {"file": "held-out.txt"},
                    "rewards": [
                        {"name": "clip-score"},
                        {"name": "http", "endpoints": ["http://a"], "timeoutSeconds": 3, "retries": 0},
                        {"name": "mine", "parameters": {"a": "1"}},
                    ],
                },
                "template": {"volumes": [{"name": "a", "nfs": {"server": "b", "path": "/"}}]},
                "checkpoint": {
                    "storage": "s3://a/b",
                    "keep": 1,
                    "secretName": "s",
                    "endpoint": "http://s3:8333",
                    "region": "here",
                    "pathStyle": True,
                },
            },
        ),
    ]
]
STRANGE: list[Any] = [
    None, "", " ", "x", "on", "yes", "010", "1e-4", "\0", "\ud800", "\u2028", "a: b", "*a", "&a", "<<", "é" * 2000,
    True, False, 0, -1, 1, 2**63, 10**400, -(10**30), 0.0, -0.5, 1.5, 1e-320, 1e308, float("nan"), float("inf"),
    [], {}, [[]], [None],
    {"": None}, {"name": None}, {"a": {"b": [1]}}, [{}] * 3, ["x"] * 70,
]  # fmt: skip


def slots(value: Any) -> list[tuple[Any, Any]]:
    """All pairs of a container and one of its keys or indices."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in entries] + [slot for _, entry in entries for slot in slots(entry)]


def spoil_values(data: Any, rng: random.Random) -> None:
    """One mutation in place."""
    container, key = rng.choice(slots(data))
    match rng.choice(["swap", "swap", "drop", "rename", "move", "nest", "add"]):
        case "swap":
            container[key] = deepcopy(rng.choice(STRANGE))
        case "drop":
            del container[key]
        case "rename" if isinstance(container, dict):
            name = list(key) or ["x"]
            name[rng.randrange(len(name))] = rng.choice("aZ_-. é\0")
            container["".join(name)] = container.pop(key)
        case "move":
            other, slot = rng.choice(slots(data))
            other[slot] = deepcopy(container[key])
        case "nest":
            container[key] = rng.choice([{"x": container[key]}, [container[key]]])
        case _ if isinstance(container, dict):
            container[rng.choice(["name", "list", "beta", "x y", "1", "steps", "endpoints", "value", "secret"])] = (
                rng.choice(STRANGE)
            )


EXCLUSIVE = [tuple(alias(model, field) for field in fields) for model, fields in ONE_OF.items()]
EXCLUSIVE.append(tuple(alias(Prompts, field) for field in Prompts.model_fields))
"""Groups of fields of which an object must have exactly one."""

Known = tuple[str, dict[str, Any], Mapping[str, Any]]
"""An object of a document: its path without indices, the object, and its schema."""


def objects(spec: Any) -> list[Known]:
    """All objects of a `spec` that have a model."""
    found: list[Known] = [("spec", spec, _schema())]
    for path, container, schema in found:
        for key, value in container.items():
            for known in choices(schema["properties"].get(key, {})):
                entries = value if isinstance(value, list) else [value]
                inner = [choice for choice in choices(known.get("items", known)) if "properties" in choice]
                found += [
                    (f"{path}.{key}", entry, one) for entry in entries if isinstance(entry, dict) for one in inner
                ]
    return found


def replaced(data: dict[str, Any], index: int, name: str, value: Any) -> dict[str, Any]:
    """A copy of a document with another value in one of its `objects`, without the fields that this value excludes."""
    copy = deepcopy(data)
    container = objects(copy["spec"])[index][1]
    for group in EXCLUSIVE:
        if name in group:
            for excluded in group:
                container.pop(excluded, None)
    container[name] = value
    return copy


@cache
def _schema() -> dict[str, Any]:
    return Spec.model_json_schema(by_alias=True)


def choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A schema's alternatives except null, with references resolved."""
    found = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    return [_schema()["$defs"][choice["$ref"].rsplit("/", 1)[-1]] if "$ref" in choice else choice for choice in found]
