"""The definition on a real API server: current, small, complete, and with the laptop's messages."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tailorpo_operator.api import cel, crd
from tailorpo_operator.api.types import MAX_URI, Job, Status
from tailorpo_trainer import document
from tailorpo_trainer.checkpoint import experiment_hash
from tailorpo_trainer.spec import rules
from tests.cluster.api import Cluster, Kubectl, KubectlError
from tests.documents import GOOD

ROOT = Path(__file__).parents[3]
CLIENT_SIDE_APPLY = 262_144  # bytes of all annotations of an object


def test_the_manifest_is_current() -> None:
    checked_in = ROOT / "manifests" / "crd.yaml"
    assert checked_in.read_text() == crd.page(), "run python -m tailorpo_operator.api.crd > manifests/crd.yaml"


@pytest.mark.filterwarnings("error::ruamel.yaml.error.YAMLWarning")
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_any_reader_of_yaml_sees_the_same(version: str) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    assert yaml.load(crd.page()) == crd.definition()


def test_the_definition_is_small_enough_for_client_side_apply() -> None:
    assert len(json.dumps(crd.definition()).encode()) < 200_000 < CLIENT_SIDE_APPLY


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every nested schema with its path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from schemas(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas(schema[key], f"{path}[]")


VERSION = crd.definition()["spec"]["versions"][0]
SCHEMAS = dict(schemas(VERSION["schema"]["openAPIV3Schema"]))


def test_everything_has_bounds_and_every_field_a_description() -> None:
    """Fields without bounds make CEL rules too expensive, and objects too large."""
    for path, schema in SCHEMAS.items():
        kind = schema.get("type", "amount")
        bounded = {"string": {"maxLength", "enum", "format"}, "array": {"maxItems"}}.get(kind, set())
        if kind == "object" and "properties" not in schema:
            bounded = {"maxProperties"}
        if path not in (".apiVersion", ".kind", ".metadata"):
            assert not bounded or bounded & set(schema), path
        if path and not path.endswith("[]") and path != ".metadata":
            assert schema.get("description"), path


def test_spec_and_status_are_whole() -> None:
    for field in document.parse(GOOD[0]).spec.model_dump(by_alias=True):
        assert f".spec.{field}" in SCHEMAS
    for field in Status().model_dump(by_alias=True):
        assert f".status.{field}" in SCHEMAS
    assert ".status.attempts[].stepTo" in SCHEMAS


def test_an_old_definition_takes_the_words_of_a_new_operator() -> None:
    for path, schema in SCHEMAS.items():
        if path.startswith(".status"):
            assert not {"enum", "minimum", "maximum", "pattern", "default"} & set(schema), path


def test_each_rule_has_its_twin() -> None:
    """`unique_entries` needs no CEL: lists of the kind `map` are the API server's own way to say it."""
    twins = {rule.name for rule in cel.RULES} - {"name", "immutable"}
    assert twins | {"unique_entries"} == {rule.__name__ for rule in rules.RULES}


def refusal(kubectl: Kubectl, data: dict[str, Any]) -> list[str]:
    """The errors that the API server reports, as `path: message`."""
    with pytest.raises(KubectlError) as caught:
        kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(data))
    lines = str(caught.value).replace(" is invalid: ", " is invalid: \n* ", 1).splitlines()
    found = [line.removeprefix("* ") for line in lines if line.startswith("* ") and line != "* "]
    return [line.replace(": Invalid value: ", ": ", 1) for line in found]


BROKEN: list[tuple[int, str, Any]] = [
    (0, "spec.prompts", {"file": "a", "list": ["b"]}),
    (0, "spec.evaluation.prompts", {}),
    (0, "spec.method", {"name": "spo", "continueFrom": "guided-winner"}),
    (0, "spec.method", {"name": "d3po", "candidates": 3}),
    (0, "spec.method", {"name": "tailorpo", "clampRatio": 0.5}),
    (0, "spec.method", {"name": "tailorpo-g", "rewardGuidance": {"strength": 1}}),
    (0, "spec.sampling", {"steps": 4, "trainedSteps": {"count": 5}}),
    (3, "spec.model", {"scoringDecoder": {"name": "tiny-animals"}}),
    (0, "spec.training.updatesPerIteration", 41),
    (0, "spec.workers", 3),
    (0, "spec.rewards", [{"name": "colourfulness", "weight": 0}]),
    (0, "spec.rewards", [{"name": "colourfulness", "model": "x"}]),
    (0, "spec.evaluation.rewards", [{"name": "http"}]),
    (2, "spec.template.volumes", [{"name": "data", "nfs": {}, "emptyDir": {}}]),
    (2, "spec.template.volumes", [{"name": "tailorpo-x", "nfs": {}}, {"name": "data", "nfs": {}}]),
    (2, "spec.template.env", [{"name": "TAILORPO_ATTEMPT"}]),
    (2, "spec.template.env", [{"name": "A", "value": "", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]),
    (2, "spec.template.modelCache", {}),
    (2, "spec.template.volumeMounts", [{"name": "data", "mountPath": "/etc/tailorpo"}]),
    (2, "spec.template.volumeMounts", [{"name": "data", "mountPath": "/etc/tailorpo/"}]),
    (2, "spec.template.volumeMounts", [{"name": "data", "mountPath": "/dev/shm/"}]),
    (0, "spec.checkpoint", {"storage": "folder", "region": "here"}),
    (0, "spec.checkpoint", {"storage": "gs://bucket/x"}),
    (0, "spec.checkpoint", {"storage": "s3://bucket/x", "caFile": "https://ca"}),
    (0, "spec.model", {"name": "https://example.com/model"}),
    (0, "spec.model", {"scoringDecoder": {"name": "hf://a/b"}}),
    (0, "spec.lora", {"initial": "S3://bucket/lora"}),
    (0, "spec.prompts", {"file": "file:///prompts.txt"}),
    (0, "spec.evaluation.prompts", {"file": "abfs+s://prompts.txt"}),
]


@pytest.mark.parametrize(("number", "path", "value"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_rule_is_said_in_the_same_words(dry: Kubectl, number: int, path: str, value: Any) -> None:
    data = changed(GOOD[number], path, value)
    with pytest.raises(document.DocumentError) as caught:
        document.parse(data)
    [problem] = caught.value.problems
    assert refusal(dry, data) == [f"{problem.path}: {problem.message}"]


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    made = deepcopy(data)
    *parents, last = path.split(".")
    place = made
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return made


@pytest.mark.parametrize(("path", "value"), [("spec.workers", 0), ("spec.rewards", [])])
def test_what_is_out_of_bounds_is_said_once(dry: Kubectl, path: str, value: Any) -> None:
    [reported] = refusal(dry, changed(GOOD[0], path, value))
    assert reported.startswith(f"{path}: ")


def test_the_stored_object_has_the_laptops_defaults(dry: Kubectl) -> None:
    for data in GOOD:
        stored = json.loads(dry("create", "--dry-run=server", "--output=json", "--filename=-", stdin=json.dumps(data)))
        assert document.parse({**data, "spec": stored["spec"]}) == document.parse(data)
        assert rules.resolve(Job.model_validate(stored).spec) == document.parse(data).spec
        explicit = set(stored["spec"]["training"])
        assert {"iterations", "promptsPerIteration", "seed", "precision"} <= explicit


CHANGES: list[tuple[str, Any]] = [
    ("spec.method.beta", 0.5),
    ("spec.method.name", "spo"),
    ("spec.model.revision", "main"),
    ("spec.lora.rank", 4),
    ("spec.prompts", {"list": ["a"]}),
    ("spec.rewards", [{"name": "colourfulness", "weight": 2}]),
    ("spec.rewards", [{"name": "colourfulness", "weight": 1.0}]),
    ("spec.rewards", [{"name": "jpeg-compressibility"}]),
    ("spec.rewards", [{"name": "colourfulness"}, {"name": "jpeg-compressibility"}]),
    ("spec.sampling.steps", 21),
    ("spec.sampling.steps", 20),
    ("spec.sampling.height", 64),
    ("spec.optimizer.emaDecay", 0.5),
    ("spec.training.seed", 1),
    ("spec.training.samplesPerPrompt", 2),
    ("spec.training.precision", "fp32"),
    ("spec.training.iterations", 101),
    ("spec.training.microBatchSize", 2),
    ("spec.training.vaeSlicing", True),
    ("spec.evaluation.images", 2),
    ("spec.evaluation.prompts", {"file": "a"}),
    ("spec.checkpoint.storage", "s3://a/b"),
    ("spec.workers", 2),
    ("spec.template.image", "b"),
    ("spec.runPolicy.suspend", True),
    ("spec.scheduling.queueName", "a"),
]


@pytest.fixture(scope="module")
def dry(cluster: Cluster, definition: str) -> Kubectl:
    """kubectl in a namespace that tests share, for they leave nothing there."""
    return cluster.kubectl()


@pytest.fixture(scope="module")
def stored(cluster: Cluster, definition: str) -> Iterator[Kubectl]:
    """kubectl beside one stored job."""
    kubectl = cluster.kubectl()
    kubectl.apply(GOOD[0])
    yield kubectl
    kubectl("delete", "tpj", "vivid")


SCORERS = [
    {"name": "http", "weight": 2, "endpoints": ["http://a:1"]},
    {"name": "brightness", "parameters": {"scale": "2"}},
]


@pytest.mark.parametrize(
    ("field", "value", "may"),
    [
        ("0.endpoints", ["http://b:2", "http://c:3"], True),
        ("0.timeoutSeconds", 5, True),
        ("0.retries", 1, True),
        ("1.batchSize", 3, True),
        ("0.weight", 3, False),
        ("0.name", "brightness", False),
        ("1.parameters", {"scale": "3"}, False),
        ("1.model", "other", False),
    ],
)
def test_how_a_scorer_is_reached_may_change(
    cluster: Cluster, definition: str, field: str, value: Any, may: bool
) -> None:
    kubectl = cluster.kubectl()
    data = changed(GOOD[0], "spec.rewards", SCORERS)
    name = "scorer-" + field.replace(".", "-").lower()
    kubectl.apply(data := changed(data, "metadata.name", name))
    number, _, key = field.partition(".")
    data["spec"]["rewards"][int(number)][key] = value
    if field == "0.name":
        del data["spec"]["rewards"][0]["endpoints"]
    if may:
        kubectl("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(data))
    else:
        with pytest.raises(KubectlError, match=re.escape(cel.UNCHANGEABLE)):
            kubectl("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(data))
    kubectl("delete", "tpj", name)


@pytest.mark.parametrize(("path", "value"), CHANGES)
def test_what_defines_the_experiment_cannot_change(stored: Kubectl, path: str, value: Any) -> None:
    data = changed(GOOD[0], path, value)
    same = experiment_hash(document.parse(data).spec) == experiment_hash(document.parse(GOOD[0]).spec)
    if same:
        stored("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(data))
        return
    field = ".".join(path.split(".")[: 3 if ".training." in path else 2])
    with pytest.raises(KubectlError, match=rf"{field}: Invalid value: (\S+: )?{re.escape(cel.UNCHANGEABLE)}"):
        stored("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(data))


@pytest.mark.usefixtures("alone")  # an operator would write the status
@pytest.mark.parametrize("number", range(len(GOOD)))
def test_a_file_that_is_applied_again_changes_nothing(kubectl: Kubectl, definition: str, number: int) -> None:
    """In any order of the two ways to apply, which is also how people move from one to the other."""
    data = changed(GOOD[number], "spec.template.volumes", [{"name": "data", "emptyDir": {}}])
    data = changed(data, "spec.template.volumeMounts", [{"name": "data", "mountPath": "/data"}])
    data = changed(
        data, "spec.template.affinity", {"podAffinity": {"a": [{"b": 1}]}}
    )  # without null, which means absent
    for first, second in [((), ("--server-side",)), (("--server-side",), ())]:
        file = json.dumps(data)

        def apply(*how: str, file: str = file) -> tuple[str, dict[str, Any]]:
            said = kubectl("apply", *how, "--filename=-", stdin=file)
            return said, kubectl.json("get", "tpj", "vivid")

        _, before = apply(*first)
        said, again = apply(*first)
        assert first or said.endswith(" unchanged\n"), said
        _, after = apply(*second)
        apply(*first)
        apply(*second)
        said, last = apply(*second)
        assert second or said.endswith(" unchanged\n"), said
        assert before["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]
        assert before["spec"] == after["spec"] == last["spec"]
        assert last["metadata"]["generation"] == 1
        kubectl("delete", "tpj", "vivid")


def test_iterations_only_grow(stored: Kubectl) -> None:
    data = changed(GOOD[0], "spec.training.iterations", 99)
    with pytest.raises(KubectlError, match=r"spec\.training\.iterations: .*may only grow: 100 were asked for before"):
        stored("apply", "--dry-run=server", "--filename=-", stdin=json.dumps(data))


def test_the_name_leaves_room_for_what_is_derived_from_it(dry: Kubectl) -> None:
    assert refusal(dry, changed(GOOD[0], "metadata.name", "a" * 41)) == ["<nil>: metadata.name is too long: at most 40"]


def test_a_typo_is_refused(dry: Kubectl) -> None:
    with pytest.raises(KubectlError, match=r'unknown field "spec\.smpling"'):
        dry("create", "--filename=-", stdin=json.dumps(changed(GOOD[0], "spec.smpling", {})))


STATUS = {
    "phase": "Running",
    "reason": "NotReady",
    "message": "trains",
    "progress": {"step": 12, "of": 100, "steps": "12/100", "eta": "1h12m"},
    "metrics": {"reward": 0.25, "gap": 0.125, "loss": 0.5},
    "restarts": 2,
    "checkpoint": {"uri": "s3://a/b/attempt-0001/step-00000010", "step": 10, "time": "2026-01-01T12:00:00Z"},
}


@pytest.mark.usefixtures("alone")  # an operator would write what is true
def test_kubectl_get_tells_where_a_job_stands(kubectl: Kubectl, definition: str) -> None:
    kubectl.apply(changed(GOOD[0], "spec.scheduling.queueName", "research"))
    patch = json.dumps({"status": STATUS})
    kubectl("patch", "tpj", "vivid", "--subresource=status", "--type=merge", f"--patch={patch}")
    header, row = kubectl("get", "tpj", "--output=wide").splitlines()
    assert header.split() == (
        "NAME PHASE REASON STEP REWARD GAP ETA RESTARTS AGE LOSS CHECKPOINT WORKERS QUEUE MESSAGE".split()
    )
    cells = row.split()
    del cells[8]  # the age
    assert cells == "vivid Running NotReady 12/100 0.25 0.125 1h12m 2 0.5 10 1 research trains".split()
    header, _ = kubectl("get", "tailorpojobs").splitlines()
    assert header.split() == "NAME PHASE REASON STEP REWARD GAP ETA RESTARTS AGE".split()
    assert "tailorpojob.tailorpo.dev/vivid" in kubectl("get", "all", "--output=name")


@pytest.mark.usefixtures("alone")  # an operator would write what is true
def test_no_field_of_a_status_is_dropped(kubectl: Kubectl, definition: str) -> None:
    kubectl.apply(GOOD[0])
    time = "2026-01-01T12:00:00Z"
    saved = {"uri": "u" * MAX_URI, "step": 1, "time": time}
    status = Status(
        observed_generation=1,
        reason="R",
        message="m" * 900,
        start_time=time,
        completion_time=time,
        next_attempt_time=time,
        failures=1,
        progress={"step": 1, "of": 2, "steps": "1/2", "percent": 50, "etaSeconds": 1.5, "eta": "1s",
                  "imagesPerSecond": 2, "updated": time},
        metrics={"reward": 1, "evaluation": -1, "gap": 0, "loss": 1e-9},
        checkpoint=saved,
        resumed_from=saved,
        adapter="a",
        conditions=[{"type": "Running", "status": "True", "lastTransitionTime": time, "reason": "R", "message": "x"}],
        attempts=[{"number": n, "start": time, "end": time, "reason": "r" * 90, "message": "x" * 300, "counted": True,
                   "exitCode": 137, "rank": 3, "node": "n", "ready": time, "accelerators": 8, "stepFrom": 0,
                   "stepTo": 1} for n in range(1, 12)],
        accelerator_seconds=2**53 - 1,
    )  # fmt: skip
    patch = json.dumps({"status": status.to_dict()})
    kubectl("patch", "tpj", "vivid", "--subresource=status", "--type=merge", f"--patch={patch}")
    reported = kubectl.json("get", "tpj", "vivid")
    assert reported["status"] == status.to_dict()
    kubectl("wait", "--for=condition=Running", "tpj/vivid", "--timeout=5s")


def test_kubectl_explain_reads_as_the_reference(dry: Kubectl) -> None:
    reported = " ".join(dry("explain", "tailorpojob.spec.method").split())
    assert "beta <number> Inverse temperature of the preference, in units of 1 / log-probability" in reported
    assert "name <string> -required-" in reported
    assert "Image with the trainer." in dry("explain", "tpj.spec.template")
    assert "Where it is." in dry("explain", "tpj.status.checkpoint")
