"""Good documents that use every field, and ways to damage them: for the laptop's reader and for the API server."""

import math
import random
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from tailorpo_trainer import parts
from tailorpo_trainer.spec import Spec

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
                "sampling": {"steps": 10, "trainedSteps": {"count": 3, "choose": "early"}, "height": 64, "width": 64},
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
                "training": {"iterations": 5, "seed": 3, "precision": "bf16", "vaeSlicing": True, "microBatchSize": 2},
                "evaluation": {
                    "everyIterations": 0,
                    "prompts": {"file": "held-out.txt"},
                    "rewards": [{"name": "clip-score"}],
                },
                "checkpoint": {"storage": "s3://a/b", "keep": 1, "secretName": "s"},
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


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in entries] + [place for _, entry in entries for place in places(entry)]


def spoil_values(data: Any, rng: random.Random) -> None:
    """One mutation in place."""
    container, key = rng.choice(places(data))
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
            other, place = rng.choice(places(data))
            other[place] = deepcopy(container[key])
        case "nest":
            container[key] = rng.choice([{"x": container[key]}, [container[key]]])
        case _ if isinstance(container, dict):
            container[rng.choice(["name", "list", "beta", "x y", "1", "steps", "endpoints", "value", "secret"])] = (
                rng.choice(STRANGE)
            )


def spoil_fields(spec: Any, rng: random.Random) -> None:
    """One field of a `spec` at an edge of what the models allow, or just beyond; in place."""
    objects: list[tuple[Any, Mapping[str, Any]]] = [(spec, _schema())]
    for container, schema in objects:
        for key, value in container.items():
            for known in _choices(schema["properties"].get(key, {})):
                entries = value if isinstance(value, list) else [value]
                inner = [choice for choice in _choices(known.get("items", known)) if "properties" in choice]
                objects += [(entry, choice) for entry in entries if isinstance(entry, dict) for choice in inner]
    container, schema = rng.choice(objects)
    name = rng.choice([*container, *schema["properties"]] if rng.random() < 0.5 else [*schema["properties"]])
    container[name] = value_of(schema["properties"].get(name, {}), rng, beyond=rng.choice([0, 0, 0.5]))


@cache
def _schema() -> dict[str, Any]:
    return Spec.model_json_schema(by_alias=True)


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A schema's choices but null, without references."""
    found = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    return [_schema()["$defs"][choice["$ref"].rsplit("/", 1)[-1]] if "$ref" in choice else choice for choice in found]


def value_of(schema: Mapping[str, Any], rng: random.Random, beyond: float) -> Any:
    """A value that a schema allows, mostly at an edge; each part of it is one just beyond with that probability."""
    schema = rng.choice(_choices(schema))
    wrong = rng.random() < beyond
    if "const" in schema or "enum" in schema:
        return "x" if wrong else rng.choice(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "boolean":
            return rng.choice([0, "true"] if wrong else [True, False])
        case "integer" | "number":
            return _number(schema, rng, wrong)
        case "string":
            return _string(schema, rng, wrong)
        case "array":
            return [value_of(schema["items"], rng, beyond)] * _count(schema, "Items", rng, wrong)
        case "object" if "properties" in schema:
            names = [name for name in schema["properties"] if name in schema.get("required", ()) or rng.random() < 0.2]
            return {name: value_of(schema["properties"][name], rng, beyond) for name in names}
        case "object":
            return _mapping(schema, rng, beyond)
    return deepcopy(rng.choice(STRANGE))


def _number(schema: Mapping[str, Any], rng: random.Random, wrong: bool) -> Any:
    low, high = (schema.get(key, schema.get(f"exclusive{key.capitalize()}", 0)) for key in ("minimum", "maximum"))
    step = schema.get("multipleOf", 1)
    above, below = math.nextafter(low, math.inf), math.nextafter(high, -math.inf)
    if wrong:
        return rng.choice(
            [low - step, high + step, low + step / 2, str(low), math.nextafter(low, -math.inf), low, high]
        )
    inner = [step, 2 * step, 3 * step]
    if schema["type"] == "number":
        return rng.choice([above, below, *inner])
    return rng.choice([low, high, low + step, high - step, *inner])


def _string(schema: Mapping[str, Any], rng: random.Random, wrong: bool) -> str:
    prefix = {parts.HTTP: "http://", parts.MOUNT_PATH: "/"}.get(schema.get("pattern", ""), "")
    text = prefix + "a" * (_count(schema, "Length", rng, wrong) - len(prefix))
    starts = ["1", "-", "A", ".", "a.b", "a..b", "a/b", "a/b/c", "1Gi", "1.5", "1e3", "+1", "\x1f"]
    ends = ["\n", "-", ".", "/", ":", " ", "A", "_", "1", "é", "\u2003", "\x85", "=", "'"]
    return rng.choice([rng.choice(starts) + text, text + rng.choice(ends), text]) if wrong else text


def _count(schema: Mapping[str, Any], unit: str, rng: random.Random, wrong: bool) -> int:
    low, high = schema.get(f"min{unit}", 0), schema.get(f"max{unit}", 3)
    few = min(high, low + 1)
    choice: int = rng.choice([low, low - 1, high, high + 1] if wrong else [low, few, few, few, high])
    return max(0, choice)


def _mapping(schema: Mapping[str, Any], rng: random.Random, beyond: float) -> dict[str, Any]:
    patterns = schema.get("patternProperties", {})
    values: Any = next(iter(patterns.values()), schema.get("additionalProperties"))
    names = [f"k{number}" for number in range(_count(schema, "Properties", rng, rng.random() < beyond))]
    if values is True:  # passed on unread
        return {name: {} for name in names}
    if rng.random() < beyond:
        keys = {**schema.get("propertyNames", {}), "pattern": next(iter(patterns), "")}
        names.append(_string(keys, rng, wrong=True))
    return {name: value_of(values, rng, beyond) for name in names}
