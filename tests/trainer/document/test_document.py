"""Every way in which a document can be wrong: the exact sentence, and the line that an editor jumps to."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel

from tailorpo_trainer import document
from tailorpo_trainer.document import reference
from tailorpo_trainer.document.schema import fields, inner_model
from tailorpo_trainer.document.source import MAX_VALUES, resolve
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import Method, TailorPOJob
from tailorpo_trainer.spec.pod_template import Template

GOOD = """\
apiVersion: tailorpo.dev/v1alpha1
kind: TailorPOJob
metadata:
  name: vivid
spec:
  prompts:
    builtin: animals
  rewards:
    - name: colourfulness
  method:
    name: tailorpo
"""
"""A document to which lines are appended: what comes first in `spec` is line 12."""

Problems = Callable[..., list[str]]


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    """The problems of a text, without the file's name: `LINE: path: message`."""

    def read(text: str | bytes, *overrides: str) -> list[str]:
        file = tmp_path / "job.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        found = refusal(file, overrides)
        if found is None:
            return []
        assert found.exit_code == 78
        assert str(found).splitlines() == [str(problem) for problem in found.problems]
        return [str(problem).removeprefix(f"{file}:").strip() for problem in found.problems]

    return read


def refusal(file: Path, overrides: Sequence[str]) -> document.DocumentError | None:
    """Why a file is refused, if it is."""
    try:
        document.read(file, overrides)
    except document.DocumentError as error:
        return error
    return None


def parse(text: str, tmp_path: Path, *overrides: str) -> TailorPOJob:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    return document.read(file, overrides)


SPEC_ERRORS = {
    # Unknown and missing fields.
    "  samplng: {}": "12: spec.samplng: unknown field: did you mean 'sampling'?",
    "  sampling: {guidance_scale: 5}": "12: spec.sampling.guidance_scale: unknown field: did you mean 'guidanceScale'?",
    "  model: {xyzzy: 1}": "12: spec.model.xyzzy: unknown field: known are name, revision, variant, scoringDecoder",
    "  model: {xyzzy: }": "12: spec.model.xyzzy: unknown field: known are name, revision, variant, scoringDecoder",
    "  evaluation: {prompts: {configMapKeyRef: {key: a}}}": (
        "12: spec.evaluation.prompts.configMapKeyRef.name: is required: Name of the ConfigMap"
    ),
    # Types.
    "  sampling:\n    eta: 0.5\n    steps: '20'": (
        "14: spec.sampling.steps: '20' must be a whole number: leave out the quotes"
    ),
    "  sampling: {steps: 2.5}": "12: spec.sampling.steps: 2.5 must be a whole number",
    "  sampling: {steps: true}": "12: spec.sampling.steps: true must be a whole number",
    "  sampling: {steps: [1]}": "12: spec.sampling.steps: [1] must be a whole number",
    "  sampling: {steps: 010}": (
        "12: spec.sampling.steps: '010' must be a whole number: without '_' and leading zeros"
    ),
    "  sampling: {steps: 1_0}": (
        "12: spec.sampling.steps: '1_0' must be a whole number: without '_' and leading zeros"
    ),
    "  sampling: {steps: 2001-12-14}": "12: spec.sampling.steps: '2001-12-14' must be a whole number",
    "  sampling: {eta: big}": "12: spec.sampling.eta: 'big' must be a finite number",
    "  sampling: {eta: .nan}": "12: spec.sampling.eta: .nan must be a finite number",
    "  sampling: {eta: .inf}": "12: spec.sampling.eta: .inf must be a finite number",
    "  sampling: {eta: -.INF}": "12: spec.sampling.eta: -.inf must be a finite number",
    "  sampling: {eta: 1e999}": "12: spec.sampling.eta: .inf must be a finite number",
    "  training: {vaeSlicing: on}": "12: spec.training.vaeSlicing: 'on' must be true or false: write true",
    "  training: {vaeSlicing: No}": "12: spec.training.vaeSlicing: 'No' must be true or false: write false",
    "  training: {vaeSlicing: 1}": "12: spec.training.vaeSlicing: 1 must be true or false",
    "  model: {name: 5}": '12: spec.model.name: 5 must be text: put it in quotes, "5"',
    "  model: {revision: true}": '12: spec.model.revision: true must be text: put it in quotes, "true"',
    "  model: {name: {a: ä}}": '12: spec.model.name: {"a": "ä"} must be text',
    "  model: tiny-animals": "12: spec.model: 'tiny-animals' must be a mapping: write {name: tiny-animals}",
    "  lora: [rank]": '12: spec.lora: ["rank"] must be a mapping',
    "  template: 5": "12: spec.template: 5 must be a mapping",
    "  evaluation: {rewards: {name: x}}": '12: spec.evaluation.rewards: {"name": "x"} must be a list',
    "  evaluation:\n    rewards:\n    - name: x\n    - null": "15: spec.evaluation.rewards[1]: null must be a mapping",
    # Bounds.
    "  sampling: {steps: 1}": "12: spec.sampling.steps: 1 is too small: must be at least 2",
    "  sampling: {eta: 0}": "12: spec.sampling.eta: 0 is too small: must be more than 0",
    "  training: {iterations: 10000001}": (
        "12: spec.training.iterations: 10000001 is too large: must be at most 10000000"
    ),
    "  optimizer: {beta1: 1}": "12: spec.optimizer.beta1: 1 is too large: must be less than 1",
    f"  training: {{seed: {10**25}}}": (
        f"12: spec.training.seed: {10**25} is too large: must be at most 9007199254740991"
    ),
    f"  training: {{seed: {'9' * 500}}}": "12: spec.training.seed: .inf must be a whole number",
    "  sampling: {width: 60}": "12: spec.sampling.width: 60 must be a multiple of 8",
    "  model: {name: ''}": "12: spec.model.name: must not be empty",
    "  lora: {targetModules: []}": "12: spec.lora.targetModules: must not be empty",
    f"  model: {{variant: {'x' * 1025}}}": (
        f"12: spec.model.variant: 'xxxxxxx{'x' * 69}... is too long: 1025 characters, at most 1024"
    ),
    f"  lora: {{targetModules: [{'x,' * 65}]}}": "12: spec.lora.targetModules: is too long: 65 entries, at most 64",
    # Choices and patterns.
    "  training: {precision: fp64}": (
        "12: spec.training.precision: 'fp64' is not one of 'auto', 'fp32', 'bf16' or 'fp16': did you mean 'fp16'?"
    ),
    "  training: {precision: 16}": ("12: spec.training.precision: 16 is not one of 'auto', 'fp32', 'bf16' or 'fp16'"),
    "  evaluation: {rewards: [{name: http, endpoints: ['ftp://a']}]}": (
        "12: spec.evaluation.rewards[0].endpoints[0]: 'ftp://a' must be a URL, http://... or https://..., "
        "without spaces"
    ),
    # Free-form parts hold what JSON can hold.
    "  template:\n    securityContext:\n    - b: .nan": (
        '13: spec.template.securityContext: [{"b": NaN}] must be a mapping'
    ),
    "  template:\n    affinity:\n      nodeAffinity: {a: [{b: .nan}]}": (
        "14: spec.template.affinity.nodeAffinity.a[0].b: .nan must be a finite number"
    ),
    # YAML that means something else than it says.
    "  lora:\n    rank: 2\n    rank: 3": "14: spec.lora.rank: stands twice: first in line 13",
    "  lora: *gone": "12: spec.lora: alias *gone has no finished anchor &gone above it",
    "  lora: &me {initial: *me}": "12: spec.lora.initial: alias *me has no finished anchor &me above it",
    "  lora: {<<: 5}": "12: spec.lora.<<: must be an alias of a mapping, or a list of them",
    "  lora: {? [a] : 5}": "12: spec.lora: has a key that is no text",
    "  lora: {rank: !!binary aGk=}": "12: spec.lora.rank: 'aGk=' cannot have the tag !!binary: leave the tag out",
    "  lora: !lora {rank: 2}": "12: spec.lora: cannot have the tag !lora: leave the tag out",
    "  lora: {rank: !!int true}": "12: spec.lora.rank: 'true' cannot have the tag !!int: leave the tag out",
    '  model: {name: "a\\0b"}': ("12: spec.model.name: 'a\\x00b' holds a character that is none (NUL or half a pair)"),
    '  model: {name: "\\ud800"}': (
        "12: spec.model.name: '\\ud800' holds a character that is none (NUL or half a pair)"
    ),
}


@pytest.mark.parametrize("addition", SPEC_ERRORS, ids=lambda text: text.strip()[:40])
def test_one_mistake_is_one_sentence(problems: Problems, addition: str) -> None:
    found = problems(GOOD + addition + "\n")
    if "no text" in SPEC_ERRORS[addition]:
        found = found[:1]  # what stands in for the key is an unknown field besides
    assert found == [SPEC_ERRORS[addition]]


RULES = {
    "tailorpo": {
        "  method: {name: tailorpo, clipRange: 0.1}": (
            "10: spec.method.clipRange: does not belong to method 'tailorpo': leave it out, or choose 'ddpo'"
        ),
        "  method:\n    name: tailorpo\n    clampRatio: 0.1": (
            "12: spec.method.clampRatio: does not belong to method 'tailorpo': leave it out, or choose 'spo' or 'd3po'"
        ),
        "  method: {name: tailorpo, rewardGuidance: {}}": (
            "10: spec.method.rewardGuidance: does not belong to method 'tailorpo': leave it out, or choose 'tailorpo-g'"
        ),
        "  method: {name: tailorpo, continueFrom: guided-winner}": (
            "10: spec.method.continueFrom: 'tailorpo' has no guided winner: use 'winner' or 'random', "
            "or method 'tailorpo-g'"
        ),
        "  method: {name: tailorpo}\n  sampling: {steps: 4, trainedSteps: {count: 5}}": (
            "11: spec.sampling.trainedSteps.count: 5 is more than spec.sampling.steps: at most 4"
        ),
        "  method: {name: tailorpo}\n  training: {promptsPerIteration: 1, updatesPerIteration: 6}": (
            "11: spec.training.updatesPerIteration: 6 updates cannot be made from 5 rows "
            "(prompts x samples x trained steps): at most 5"
        ),
        "  method: {name: tailorpo}\n  evaluation: {prompts: {}}": (
            "11: spec.evaluation.prompts: needs exactly one of 'builtin' or 'list' or 'file' or 'configMapKeyRef', "
            "has none"
        ),
        "  method: {name: tailorpo}\n  evaluation: {prompts: {file: a, list: [b]}}": (
            "11: spec.evaluation.prompts: needs exactly one of 'builtin' or 'list' or 'file' or 'configMapKeyRef', "
            "has 'list' and 'file'"
        ),
        "  method: {name: tailorpo}\n  evaluation: {rewards: [{name: http}]}": (
            "11: spec.evaluation.rewards[0].endpoints: reward 'http' needs at least one URL, such as http://host:8080"
        ),
        "  method: {name: tailorpo}\n  evaluation: {rewards: [{name: colourfulness, model: a}]}": (
            "11: spec.evaluation.rewards[0].model: does not belong to reward 'colourfulness'"
        ),
    },
    "tailorpo-g": {
        "  method: {name: tailorpo-g, rewardGuidance: {strength: 2}}": (
            "10: spec.method.rewardGuidance.strength: needs spec.method.rewardGuidance.target, "
            "the reward to push towards; or use `fraction` instead"
        ),
        "  method: {name: tailorpo-g, candidates: 3}": (
            "10: spec.method.candidates: does not belong to method 'tailorpo-g': leave it out, or choose 'spo'"
        ),
    },
    "spo": {
        "  method: {name: spo, advantageClip: 3}": (
            "10: spec.method.advantageClip: does not belong to method 'spo': leave it out, or choose 'ddpo'"
        ),
        "  method: {name: spo, continueFrom: guided-winner}": (
            "10: spec.method.continueFrom: 'spo' has no guided winner: use 'winner' or 'random', or method 'tailorpo-g'"
        ),
    },
    "d3po": {
        # One mistake, one sentence: that d3po has no guided winner either is not said.
        "  method: {name: d3po, continueFrom: guided-winner}": (
            "10: spec.method.continueFrom: does not belong to method 'd3po': "
            "leave it out, or choose 'tailorpo' or 'tailorpo-g' or 'spo'"
        ),
        "  method: {name: d3po, threshold: 0}": (
            "10: spec.method.threshold: does not belong to method 'd3po': leave it out, or choose 'spo'"
        ),
    },
    "ddpo": {
        "  method: {name: ddpo, beta: 1}": (
            "10: spec.method.beta: does not belong to method 'ddpo': "
            "leave it out, or choose 'tailorpo' or 'tailorpo-g' or 'spo' or 'd3po'"
        ),
    },
}
BEFORE_METHOD = "".join(GOOD.splitlines(keepends=True)[:9])


@pytest.mark.parametrize(("method", "text"), [(method, text) for method, cases in RULES.items() for text in cases])
def test_rules_across_fields(problems: Problems, method: str, text: str) -> None:
    assert problems(BEFORE_METHOD + text + "\n") == [RULES[method][text]]


@pytest.mark.parametrize("method", rules.METHOD_DEFAULTS)
def test_a_method_takes_its_own_parameters_and_no_others(problems: Problems, method: str) -> None:
    owned = {field for own in rules.METHOD_PARAMETERS.values() for field in own}
    values = {"continue_from": "random", "reward_guidance": "{}", "candidates": 3}
    for field in owned:
        alias = Method.model_fields[field].alias
        found = problems(f"{BEFORE_METHOD}  method: {{name: {method}, {alias}: {values.get(field, 0.5)}}}\n")
        if field in rules.METHOD_PARAMETERS[method]:
            assert found == []
        else:
            assert len(found) == 1
            assert found[0].startswith(f"10: spec.method.{alias}: does not belong to method {method!r}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["holds no document of kind TailorPOJob"]),
        ("# nothing\n---\n", ["holds no document of kind TailorPOJob"]),
        ("apiVersion: v1\nkind: ConfigMap\n", ["holds no document of kind TailorPOJob"]),
        ("- a\n", ['1: must be a mapping with kind: TailorPOJob, is ["a"]']),
        ("\n\ntext\n", ["3: must be a mapping with kind: TailorPOJob, is 'text'"]),
        (GOOD + "---\n" + GOOD, ["holds 2 TailorPOJob documents: give a file with one"]),
        (GOOD + "\tx: 1\n", ["12: is not YAML: a tab cannot indent: use spaces"]),
        (
            "a: b: c\n",
            ["1: is not YAML: a ':' that begins no value here: check the indentation, or put the text in quotes"],
        ),
        ('\na: "b\n\n', ["2: is not YAML: while scanning a quoted scalar, found unexpected end of stream"]),
        (
            "a:\n  - {b: 1\nc: 2\n",
            ["3: is not YAML: while parsing a flow mapping that begins in line 2, expected ',' or '}', but got ':'"],
        ),
        ("a:\n  b\nc\nd: e\n", ["3: is not YAML: while scanning a simple key, could not find expected ':'"]),
        (
            "a:\n  b: 1\n c: 2\n",
            ["3: is not YAML: what stands here does not belong to the lines above: check the indentation"],
        ),
        ("a: b\nc: \x01\n", ["2: is not YAML: unacceptable character #x0001: special characters are not allowed"]),
        (b"a: 1\nb: \xff\n", ["2: is not UTF-8 text: invalid start byte"]),
        ("a: 1\n".encode("utf-16"), ["1: is not UTF-8 text: invalid start byte"]),
        ("[" * 5000, ["1: is nested deeper than 64 levels"]),
        ("a: " + "[" * 70 + "]" * 70, ["1: is nested deeper than 64 levels"]),
        ("- " * 5000, ["1: is nested deeper than 64 levels"]),
        ('a: "\\UFFFFFFFF"\n', ["is not YAML: an escape (\\x, \\u or \\U) names no character that there is"]),
        (b"#" * 2_000_000, ["is larger than 1572864 bytes"]),
    ],
)  # fmt: skip
def test_what_is_no_job_at_all(problems: Problems, text: str | bytes, expected: list[str]) -> None:
    assert [line.split(": ", 1)[1] if line.startswith("/") else line for line in problems(text)] == expected


def test_an_alias_bomb_is_refused_at_once(problems: Problems) -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert problems("\n".join(lines)) == [f"6: a5: holds more than {MAX_VALUES} values, with its aliases written out"]


def test_all_problems_are_said_at_once_in_the_order_of_lines(problems: Problems) -> None:
    text = """\
apiVersion: tailorpo.dev/v1
kind: TailorPoJob
metadata: {name: Bad_Name}
spec:
  rewards:
    - {nam: x, weight: 2e9}
    - {name: colourfulness, model: x}
    - foo
    - {name: http}
  method: {name: tailorpoo, beta: .nan}
  sampling: {steps: 10000, trainedSteps: {count: 30}}
  training:
    iterations: "3"
  checkpoint:
"""
    assert problems(text) == [
        "1: apiVersion: 'tailorpo.dev/v1' is not 'tailorpo.dev/v1alpha1': did you mean 'tailorpo.dev/v1alpha1'?",
        "2: kind: 'TailorPoJob' is not 'TailorPOJob': did you mean 'TailorPOJob'?",
        "3: metadata.name: 'Bad_Name' must be lower-case letters, digits and '-', from a letter to a letter or digit",
        "4: spec.prompts: is required: Prompts to train on",
        "6: spec.rewards[0].nam: unknown field: did you mean 'name'?",
        "6: spec.rewards[0].name: is required: `colourfulness`, `clip-score`, `jpeg-compressibility`, "
        "`jpeg-incompressibility`, `http`, or the name of an installed plug-in (entry point group `tailorpo.rewards`)",
        "6: spec.rewards[0].weight: 2000000000 is too large: must be at most 1000000",
        "7: spec.rewards[1].model: does not belong to reward 'colourfulness'",
        "8: spec.rewards[2]: 'foo' must be a mapping: write {name: foo}",
        "9: spec.rewards[3].endpoints: reward 'http' needs at least one URL, such as http://host:8080",
        "10: spec.method.beta: .nan must be a finite number",
        "10: spec.method.name: 'tailorpoo' is not one of 'tailorpo', 'tailorpo-g', 'spo', 'd3po' or 'ddpo': "
        "did you mean 'tailorpo'?",
        "11: spec.sampling.steps: 10000 is too large: must be at most 1000",
        "13: spec.training.iterations: '3' must be a whole number: leave out the quotes",
    ]


def test_required_fields_name_what_they_need(problems: Problems) -> None:
    assert problems("kind: TailorPOJob\n") == [
        "1: apiVersion: is required: 'tailorpo.dev/v1alpha1'",
        "1: metadata: is required: The job's name",
        "1: spec: is required: What to train and where",
    ]
    assert problems(GOOD.replace("  name: vivid", "  labels: {}")) == [
        "3: metadata.name: is required: Name of the job: lower-case letters, digits and `-`, at most 40"
    ]


def test_all_rewards_weighing_nothing(problems: Problems) -> None:
    assert problems(GOOD.replace("colourfulness", "colourfulness\n      weight: 0")) == [
        "8: spec.rewards: all weights are 0: at least one must differ from 0"
    ]


def test_a_problem_within_an_alias_is_where_it_was_written(problems: Problems) -> None:
    text = GOOD.replace("builtin: animals", "&p\n    fil: x") + "  evaluation:\n    prompts: *p\n"
    assert problems(text) == [
        "8: spec.evaluation.prompts.fil: unknown field: did you mean 'file'?",
        "8: spec.prompts.fil: unknown field: did you mean 'file'?",
    ]


def test_a_problem_of_an_alias_in_a_list_is_where_the_alias_stands(problems: Problems) -> None:
    text = GOOD + "  evaluation:\n    rewards:\n    - &r foo\n    - name: x\n    - *r\n"
    assert problems(text) == [
        "14: spec.evaluation.rewards[0]: 'foo' must be a mapping: write {name: foo}",
        "16: spec.evaluation.rewards[2]: 'foo' must be a mapping: write {name: foo}",
    ]


def test_merge_keys_fill_in_what_is_not_given(tmp_path: Path) -> None:
    merged = "{<<: [&a {x: 1, y: 1}, {y: 2, z: 2}], z: 3, '<<': text}"
    text = GOOD + f"  template: {{securityContext: {merged}}}\n"
    assert parse(text, tmp_path).spec.template.security_context == {"x": 1, "y": 1, "z": 3, "<<": "text"}


def test_a_problem_that_a_merge_brings_in_is_where_it_was_written(problems: Problems) -> None:
    text = GOOD + "  template:\n    securityContext: &x\n      rank: 0\n  lora:\n    <<: *x\n    alpha: 1\n"
    assert problems(text) == ["14: spec.lora.rank: 0 is too small: must be at least 1"]


def test_lines_are_an_editors(problems: Problems) -> None:
    """Windows line ends, a byte order mark, and characters that YAML once took for line ends."""
    text = GOOD + "  model: {name: 'a\u2028b'}\n  lora: {rank: 0}\n"
    expected = ["13: spec.lora.rank: 0 is too small: must be at least 1"]
    assert problems(text) == expected
    assert problems(text.replace("\n", "\r\n")) == expected
    assert problems(b"\xef\xbb\xbf" + text.encode()) == expected
    assert problems("%YAML 1.2\n---\n" + text) == [expected[0].replace("13", "15")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E3", 1000), ("20.0", 20), (".5", 0.5), ("+7", 7), ("-0", 0), ("0x1F", 31), ("0o17", 15),
        ("1e400", float("inf")), ("true", True), ("True", True), ("FALSE", False), ("", None),
        ("~", None), ("Null", None),
        *((text, text) for text in (
            "on", "off", "yes", "No", "y", "010", "1_000", "0b1", "1:30", "2001-12-14", "1.2.3", "nan", "e3", "0x",
            "=", "tRUE", "0o8", "--1",
        )),
    ],
)  # fmt: skip
def test_unquoted_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_json_files_are_documents(tmp_path: Path, problems: Problems) -> None:
    job = parse(GOOD, tmp_path)
    data = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["spec"]["prompts"] = {"list": ["a \U0001f431 cat", "a/b"]}
    text = json.dumps(data, indent="\t").replace("a/b", "a\\/b")
    assert "\\ud83d" in text
    assert parse(text, tmp_path).spec.prompts.list_ == ["a \U0001f431 cat", "a/b"]
    line = text[: text.index('"rank"')].count("\n") + 1
    assert problems(text.replace('"rank": 8', '"rank": 0')) == [
        f"{line}: spec.lora.rank: 0 is too small: must be at least 1"
    ]


@pytest.mark.parametrize("empty", ["", " null", " ~", " {}"])
def test_an_object_left_empty_has_its_defaults(tmp_path: Path, empty: str) -> None:
    names = ("model", "lora", "sampling", "optimizer", "training", "evaluation", "checkpoint")
    assert parse(GOOD + "".join(f"  {name}:{empty}\n" for name in names), tmp_path) == parse(GOOD, tmp_path)


def test_null_is_absent_as_for_the_api_server(tmp_path: Path, problems: Problems) -> None:
    assert parse(GOOD + "  sampling: {steps: null}\n  workers:\n", tmp_path) == parse(GOOD, tmp_path)
    assert problems(GOOD[: GOOD.index("spec:")] + "spec:\n") == ["5: spec: is required: What to train and where"]
    assert problems(GOOD.replace("name: tailorpo\n", "name:\n")) == [
        "11: spec.method.name: is required: The preference-optimisation method"
    ]


def test_null_within_a_free_form_part_stays(tmp_path: Path) -> None:
    job = parse(GOOD + "  template: {volumes: [{name: a, emptyDir: {medium: }}]}\n", tmp_path)
    assert job.spec.template.volumes[0].empty_dir == {"medium": None}
    assert parse(document.dump(job), tmp_path) == job


def test_what_kubectl_prints_can_be_read_again(tmp_path: Path) -> None:
    text = """\
apiVersion: tailorpo.dev/v1alpha1
kind: TailorPOJob
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"tailorpo.dev/v1alpha1","kind":"TailorPOJob"}
  creationTimestamp: "2025-11-24T01:39:00Z"
  finalizers: []
  generation: 2
  managedFields:
  - apiVersion: tailorpo.dev/v1alpha1
    fieldsType: FieldsV1
    fieldsV1:
      f:spec:
        .: {}
        f:method: {}
    manager: kubectl
    operation: Update
    time: 2025-11-24T01:39:00Z
  name: vivid
  namespace: default
  ownerReferences:
  resourceVersion: "4711"
  uid: 9f3c1b0e-0000-4000-8000-000000000000
spec:
  method: {name: tailorpo}
  prompts: {builtin: animals}
  rewards: [{name: colourfulness}]
  workers: 2
status:
  phase: Running
  conditions:
  - {type: Running, status: "True", lastTransitionTime: 2025-11-24T01:40:00Z}
  progress: {step: 3, reward: .nan}
"""
    job = parse(text, tmp_path)
    assert (job.metadata.name, job.metadata.namespace, job.spec.workers) == ("vivid", "default", 2)
    assert job.status is None
    assert parse(document.dump(job), tmp_path) == job


def test_a_list_of_kubectl_and_documents_of_other_kinds(tmp_path: Path, problems: Problems) -> None:
    item = "-" + "".join(f"  {line}\n" for line in GOOD.splitlines())[1:]
    secret = "apiVersion: v1\nkind: Secret\nstringData: {a: b, a: c}\n---\n"
    kubectl = "---\n---\napiVersion: v1\nkind: List\nitems:\n"
    file = tmp_path / "all.yaml"
    file.write_text(secret + GOOD + kubectl + item + item + "---\nkind: Namespace\napiVersion: v1\n")
    assert [job.metadata.name for job in document.read_all(file)] == ["vivid"] * 3
    text = secret + kubectl + item + item.replace("builtin: animals", "builtin: dogs")
    assert problems(text) == [
        f"{text[: text.index('dogs')].count(chr(10)) + 1}: spec.prompts.builtin: "
        "'dogs' is not one of 'animals', 'tiny-animals' or 'tiny-animals-held-out'"
    ]


def test_a_document_without_a_version_is_taken_for_ours(problems: Problems) -> None:
    assert problems(GOOD.replace("TailorPOJob", "TailorJob").replace("apiVersion: tailorpo.dev/v1alpha1\n", "")) == [
        "1: apiVersion: is required: 'tailorpo.dev/v1alpha1'",
        "1: kind: 'TailorJob' is not 'TailorPOJob': did you mean 'TailorPOJob'?",
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(document.DocumentError, match=r"none\.yaml: cannot be read: No such file or directory$"):
        document.read(tmp_path / "none.yaml")
    with pytest.raises(document.DocumentError, match=r"cannot be read: Is a directory$"):
        document.read(tmp_path)


def test_plain_values_pass_the_same_checks() -> None:
    data = {"apiVersion": "tailorpo.dev/v1alpha1", "kind": "TailorPOJob", "metadata": {"name": "a"}, "spec": None}
    with pytest.raises(document.DocumentError) as caught:
        document.parse(data, "request")
    assert str(caught.value) == "request: spec: is required: What to train and where"
    assert "spec" in data  # what was given is not changed


# --set


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("spec.sampling.steps=7", "sampling.steps", 7),
        ("spec.optimizer.learningRate=1e-3", "optimizer.learning_rate", 1e-3),
        (" spec.lora.rank = 3", "lora.rank", 3),
        ("spec.lora={rank: 3}", "lora.rank", 3),
        ("spec.lora.targetModules[1]=to_x", "lora.target_modules", ["to_q", "to_x"]),
        ("spec.lora.targetModules[2]=to_x", "lora.target_modules", ["to_q", "to_k", "to_x"]),
        ("spec.rewards[0].weight=-2", "rewards.0.weight", -2),
        ("spec.rewards[1].name=clip-score", "rewards.1.name", "clip-score"),
        ("spec.rewards=[{name: clip-score}]", "rewards.0.name", "clip-score"),
        ("spec.evaluation.rewards[0].name=clip-score", "evaluation.rewards.0.name", "clip-score"),
        ("spec.model.name=a=b", "model.name", "a=b"),
        ("spec.model.name='5'", "model.name", "5"),
        ("spec.training.iterations=", "training.iterations", 100),
        ("spec.training.iterations=null", "training.iterations", 100),
        (r"spec.template.resources.limits.nvidia\.com/gpu=1", "template.resources.limits", {"nvidia.com/gpu": 1}),
    ],
)  # fmt: skip
def test_set_overrides(tmp_path: Path, override: str, path: str, value: Any) -> None:
    text = GOOD + "  lora: {targetModules: [to_q, to_k]}\n  training: {iterations: 5}\n"
    found: Any = parse(text, tmp_path, override).spec
    for key in path.split("."):
        found = found[int(key)] if key.isdigit() else getattr(found, key)
    assert found == value


def test_the_last_of_two_settings_counts(tmp_path: Path) -> None:
    job = parse(GOOD, tmp_path, "spec.sampling.steps=7", "spec.sampling.steps=8")
    assert job.spec.sampling.steps == 8


HOW = "must be PATH=VALUE, such as spec.sampling.steps=10 or spec.rewards[0].weight=2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("spec.sampling.steps", HOW),
        ("=3", HOW),
        ("spec..steps=3", HOW),
        ("spec.rewards[x]=3", HOW),
        ("spec.rewards[²].name=3", HOW),
        ("[0]=3", HOW),
        ("spec.rewards[3].name=x", "spec.rewards has 1 entries: [1] appends one, [3] is too far"),
        ("spec.rewards.name=x", "spec.rewards is a list: it has no 'name', but perhaps spec.rewards[0].name"),
        ("spec.method[0]=x", "spec.method is not a list: it has no [0]"),
        ("spec.method.name.x=y", "spec.method.name is not a mapping: it has no 'x'"),
        ("spec.lora.rank=[",
         "'[' is not a YAML value: while parsing a flow node, expected the node content, but found "
         "'<stream end>': put the whole option in single quotes"),
        ("spec.lora.rank=*a", "'*a' is not a YAML value: alias *a has no finished anchor &a above it"),
        ("spec.lora={a: 1, a: 2}", "'{a: 1, a: 2}' is not a YAML value: stands twice: first in line 1"),
        ("spec.lora.rank=--- 1\n--- 2", "'--- 1\\n--- 2' is more than one YAML value"),
        ("spec.lora.rank=0", "spec.lora.rank: 0 is too small: must be at least 1"),
        ("spec.lora.rnk=1", "spec.lora.rnk: unknown field: did you mean 'rank'?"),
        ("spec.smpling.steps=1", "spec.smpling: unknown field: did you mean 'sampling'?"),
        ("spec.method.clipRange=0.1",
         "spec.method.clipRange: does not belong to method 'tailorpo': leave it out, or choose "
         "'ddpo'"),
        ("spec.prompts.file=x",
         "spec.prompts: needs exactly one of 'builtin' or 'list' or 'file' or 'configMapKeyRef', "
         "has 'builtin' and 'file': add --set spec.prompts.builtin="),
        ("spec.prompts.list=[a,b]",
         "spec.prompts: needs exactly one of 'builtin' or 'list' or 'file' or 'configMapKeyRef', "
         "has 'builtin' and 'list': add --set spec.prompts.builtin="),
        ("spec.lora.targetModules=to_q,to_k",
         "spec.lora.targetModules: 'to_q,to_k' must be a list: write [to_q, to_k]"),
        ("spec.prompts.list=yes, no",
         "spec.prompts.list: 'yes, no' must be a list: write [yes, no]"),
        ("spec.prompts.list=1, true",
         "spec.prompts.list: '1, true' must be a list: write [\"1\", \"true\"]"),
        ("spec.rewards=jpeg-compressibility, clip-score",
         "spec.rewards: 'jpeg-compressibility, clip-score' must be a list: "
         "write [{name: jpeg-compressibility}, {name: clip-score}]"),
        ("spec.rewards[0].endpoints=http://a:1",
         "spec.rewards[0].endpoints: 'http://a:1' must be a list: write [http://a:1]"),
        ("spec.template.env=A=b", "spec.template.env: 'A=b' must be a list"),
        ("spec.method=spo", "spec.method: 'spo' must be a mapping: write {name: spo}"),
        ("spec.prompts=animals",
         "spec.prompts: 'animals' must be a mapping: its fields are builtin, list, file, configMapKeyRef"),
        ("spec.rewards[0].parameters=scale:2",
         "spec.rewards[0].parameters: 'scale:2' must be a mapping: write {scale: \"2\"}, with a space after the colon"),
        ("spec.optimizer.learningRate=0,1",
         "spec.optimizer.learningRate: '0,1' must be a finite number: write the decimal point as '.'"),
        ("sampling.steps=4", "sampling: unknown field: did you mean 'spec.sampling'?"),
        ("spec.lora.targetModules=[to_q,",
         "'[to_q,' is not a YAML value: while parsing a flow node, expected the node content, but found "
         "'<stream end>': put the whole option in single quotes"),
        ("metadata.name=A",
         "metadata.name: 'A' must be lower-case letters, digits and '-', from a letter to a letter or digit"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(problems: Problems, override: str, message: str) -> None:
    # A message is one line, whatever the option held.
    assert problems(GOOD, override) == [f"--set {override}: {message}".replace("\n", "\\n")]


def test_what_the_file_says_and_an_option_makes_wrong_is_left_out_by_another(problems: Problems) -> None:
    text = GOOD.replace("{name: tailorpo}", "{name: tailorpo, beta: 0.2}").replace(
        "name: tailorpo\n", "name: tailorpo\n    beta: 0.2\n"
    )
    [problem] = problems(text, "spec.method.name=ddpo")
    assert problem.endswith(
        "spec.method.beta: does not belong to method 'ddpo': leave it out, or choose 'tailorpo' or 'tailorpo-g' or "
        "'spo' or 'd3po'; --set spec.method.beta= leaves it out"
    )
    assert problems(text, "spec.method.name=ddpo", "spec.method.beta=") == []
    assert problems(GOOD, "spec.prompts.list=[a]", "spec.prompts.builtin=") == []


def test_settings_and_the_file_are_judged_together(problems: Problems) -> None:
    assert problems(GOOD + "  lora: {rank: 0}\n", "spec.sampling.steps=0", "nonsense") == [
        f"--set nonsense: {HOW}",
        "--set spec.sampling.steps=0: spec.sampling.steps: 0 is too small: must be at least 2",
        "12: spec.lora.rank: 0 is too small: must be at least 1",
    ]


# Defaults, and the way back


@pytest.mark.parametrize("method", rules.METHOD_DEFAULTS)
def test_defaults_of_the_method_are_written_out(tmp_path: Path, method: str) -> None:
    job = parse(GOOD.replace("name: tailorpo\n", f"name: {method}\n"), tmp_path)
    for field in rules.METHOD_PARAMETERS[method]:
        assert getattr(job.spec.method, field) is not None
    trained = {"tailorpo": (5, "spread"), "tailorpo-g": (5, "spread"), "spo": (16, "late")}.get(method, (20, "spread"))
    assert (job.spec.sampling.trained_steps.count, job.spec.sampling.trained_steps.choose) == trained
    assert parse(document.dump(job), tmp_path) == job


AWKWARD = [
    "yes", "On", "n", "null", "~", "010", "1e3", ".5e5", "1_000", "0x1", "2001-12-14", "12:30:45", "a: b", "a #b", "#a",
    "-", "- a", "a\nb", "a\n\n b ", " a", "a ", "a:", "\u2028", "\x85", "\x07", "'", '"', "\\", "{a}", "[", "*a", "&a",
    "!a", "%a", "@a", "`a", "=", "<<", "\U0001f431", "ä", "\ufeff", "a\tb", "x" * 500, "s3://a/b", "? a", "|", ">",
    ".nan", "...", "---",
]  # fmt: skip


def test_any_text_survives_the_way_through_yaml(tmp_path: Path) -> None:
    job = parse(GOOD, tmp_path, f"spec.prompts={json.dumps({'list': AWKWARD})}")
    template = Template(security_context={"x": {f"k{text}": [text] for text in AWKWARD}})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"template": template})})
    again = parse(document.dump(job), tmp_path)
    assert again.spec.prompts.list_ == AWKWARD
    assert again == job


def test_the_reference_page_is_current() -> None:
    checked_in = Path(__file__).parents[3] / "docs" / "reference.md"
    assert checked_in.read_text() == reference.page() + "\n", (
        "run python -m tailorpo_trainer.document.reference > docs/reference.md"
    )


# Bounds, all of them


def numeric_bounds(model: type[BaseModel], path: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Each bound of each numeric field: its path, a value just inside, one just outside, and the word for it."""
    for name, field in fields(model).items():
        child = f"{path}.{name}".lstrip(".")
        whole = int in (field.annotation, *getattr(field.annotation, "__args__", ()))
        step: Any = next((m.multiple_of for m in field.metadata if isinstance(m, annotated_types.MultipleOf)), 1)
        for bound in field.metadata:
            for kind, sign in (("ge", -1), ("le", 1), ("gt", 1), ("lt", -1)):
                limit: Any = getattr(bound, kind, None)
                if limit is not None and kind in ("ge", "le"):
                    beyond = step if whole else max(abs(limit) * 1e-9, 1e-9)
                    yield child, limit, limit + sign * beyond, "small" if kind == "ge" else "large"
                elif limit is not None:
                    yield child, limit + sign * 1e-9, limit, "small" if kind == "gt" else "large"
        inner = inner_model(field)
        if inner is not None:
            yield from numeric_bounds(inner, child + ("[0]" if "list[" in str(field.annotation) else ""))


BOUNDS = list(numeric_bounds(TailorPOJob, ""))
HTTP = "[{name: http, endpoints: ['http://a']}]"
# What else has to hold for a field's extreme value to be right.
COMPANIONS = {
    "spec.sampling.trainedSteps.count": "spec.sampling.steps=1000",
    "spec.training.updatesPerIteration": "spec.training.promptsPerIteration=65536",
    "spec.workers": "spec.training.promptsPerIteration=1024",
    "spec.processesPerWorker": "spec.training.promptsPerIteration=64",
    "spec.method.rewardGuidance.strength": "spec.method.rewardGuidance.target=1",
    **{
        f"spec.{place}[0].{field}": f"spec.{place}={reward}"
        for place in ("rewards", "evaluation.rewards")
        for field, reward in {
            "weight": "[{name: clip-score}]",
            "timeoutSeconds": HTTP,
            "retries": HTTP,
            "batchSize": "[{name: clip-score}]",
        }.items()
    },
}


def owner(path: str) -> str:
    """A method that takes the parameter at a path."""
    for method, parameters in rules.METHOD_PARAMETERS.items():
        aliases = {Method.model_fields[field].alias or field for field in parameters}
        if path.startswith("spec.method.") and path.split(".")[2] in aliases:
            return method
    return "tailorpo"


def test_the_bounds_are_found() -> None:
    assert len(BOUNDS) > 80
    assert ("spec.sampling.steps", 2, 1, "small") in BOUNDS


@pytest.mark.parametrize(("path", "inside", "outside", "word"), BOUNDS)
def test_each_bound_is_where_it_is_said_to_be(
    problems: Problems, path: str, inside: float, outside: float, word: str
) -> None:
    text = GOOD.replace("name: tailorpo\n", f"name: {owner(path)}\n")
    companions = [COMPANIONS[path]] if path in COMPANIONS else []
    assert problems(text, *companions, f"{path}={inside!r}") == []
    [problem] = problems(text, *companions, f"{path}={outside!r}")
    assert f" {path}: " in problem
    assert f"is too {word}: must be" in problem
