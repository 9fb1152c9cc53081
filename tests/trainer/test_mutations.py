"""Good documents, damaged at random: `tailorpo validate` says what is wrong with them, and never falls over itself.

A mutation either spoils the values (a key renamed, a value swapped for a strange one, a branch cut or moved) or the
text (a character or line lost, doubled or put in).
"""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tailorpo_trainer import cli, document

TEMPLATE = {
    "image": "registry:5000/a@sha256:0",
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"example.com/team": "x", "stage": ""},
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}, "requests": {"cpu": "500m"}},
    "env": [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "a.b", "key": "tls.crt", "optional": True}}},
    ],
    "envFrom": [{"prefix": "A_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}}],
    "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "x"}},
        {"name": "tmp", "emptyDir": {"a": None}},
    ],
    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "a"}],
    "shmSize": "2Gi",
    "modelCache": {"claimName": "models", "mountPath": "/models"},
    "hubToken": {"name": "hub", "key": "token"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
    "affinity": {"nodeAffinity": {"x": [1]}},
    "topologySpreadConstraints": [{"maxSkew": 1}],
    "serviceAccountName": "trainer",
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
                "model": {"name": "a/b", "revision": "main", "variant": "fp16"},
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
SNIPPETS = [
    "\t", "\n", " ", "  ", ":", ": ", "- ", "-", "#", "'", '"', "{", "}", "[", "]", ",", "&a ", "*a", "!!str ", "!x ",
    "|", ">-", "%", "@", "`", "---\n", "...\n", "? ", "<<: ", "\\", "\0", "\x07", "\u2028", "\ufeff",
    "\r", "~", ".nan", "1e999", "\U0001f431",
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


def spoil_text(text: str, rng: random.Random) -> str:
    """One mutation of the text."""
    at = rng.randrange(len(text) + 1)
    lines = text.split("\n")
    line = rng.randrange(len(lines))
    match rng.choice(["cut", "insert", "insert", "lose", "double", "indent", "swap"]):
        case "cut":
            return text[:at]
        case "insert":
            return text[:at] + rng.choice(SNIPPETS) + text[at:]
        case "lose":
            return text[:at] + text[at + rng.randrange(1, 4) :]
        case "double":
            return "\n".join([*lines[: line + 1], *lines[line:]])
        case "indent":
            return "\n".join([*lines[:line], rng.choice([" ", "  ", "\t"]) + lines[line], *lines[line + 1 :]])
    other = rng.randrange(len(lines))
    lines[line], lines[other] = lines[other], lines[line]
    return "\n".join(lines)


def render(data: Any, rng: random.Random) -> str:
    """The values as JSON, or as YAML in block style with JSON scalars."""
    if rng.random() < 0.2:
        return json.dumps(data, indent=rng.choice([None, 2, "\t"]))
    return block(data, 0).lstrip("\n") + "\n"


def block(value: Any, depth: int) -> str:
    indent = "\n" + "  " * depth
    if isinstance(value, dict) and value:
        return "".join(f"{indent}{json.dumps(key)}: {block(entry, depth + 1)}" for key, entry in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{indent}- {block(entry, depth + 1)}" for entry in value)
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9]*", value):
        return value
    return {"NaN": ".nan", "Infinity": ".inf"}.get(text := json.dumps(value), text)


def mutant(seed: int) -> str:
    """A good document with one to three mutations."""
    rng = random.Random(seed)
    data = deepcopy(rng.choice(GOOD))
    if rng.random() < 0.6:
        for _ in range(rng.choice([1, 1, 2, 3])):
            if places(data):
                spoil_values(data, rng)
        return render(data, rng)
    text = render(data, rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        text = spoil_text(text, rng)
    return text


def judge(file: Path, status: int, out: str, err: str) -> None:
    """What must hold whatever the document was."""
    assert "Traceback" not in out + err
    if status == 0:
        assert out.startswith(f"{file}: ok (")
        assert err == ""
        for job in document.read_all(file):
            again = file.with_name("again.yaml")
            again.write_text(document.dump(job), encoding="utf-8")
            assert document.read(again) == job
        return
    assert status == 78
    assert out == ""
    text = file.read_bytes().decode(errors="replace")
    lines = text.count("\n") + text.count("\r") + 1
    for problem in err.splitlines():
        found = re.fullmatch(rf"{re.escape(str(file))}(?::(\d+))?: (?:[\w.\[\]-]+: )?.+", problem)
        assert found, problem
        assert found[1] is None or 1 <= int(found[1]) <= lines


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_damaged_document_is_refused_in_words(tmp_path: Path, seed: int) -> None:
    text = mutant(seed)
    note(text)
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["validate", str(file)])
    judge(file, status, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("seed", range(5))
def test_the_same_in_a_process_of_its_own(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(mutant(seed).encode(errors="surrogatepass"))
    program = "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(file)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    judge(file, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_the_documents_are_good_before(tmp_path: Path, number: int) -> None:
    file = tmp_path / "job.yaml"
    for seed in range(4):
        file.write_text(render(GOOD[number], random.Random(seed)))
        assert document.read(file).spec.method.name == GOOD[number]["spec"]["method"]["name"]


def test_the_mutations_do_damage() -> None:
    """Else the test above would say little."""
    texts = {mutant(seed) for seed in range(300)}
    assert len(texts) > 250
