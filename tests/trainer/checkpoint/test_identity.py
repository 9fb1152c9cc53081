"""Whose storage: what counts as the same experiment, and messages that name what does not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer.checkpoint import differences, experiment_hash, open_run, open_store
from tailorpo_trainer.checkpoint.identity import Difference, defining, hash_of
from tailorpo_trainer.errors import ConfigurationError, ExitCode

Job = Callable[..., Any]


@pytest.mark.parametrize(
    "change",
    [
        "workers=4",
        "processesPerWorker=2",
        "template={image: other}",
        "runPolicy={backoffLimit: 1}",
        "scheduling={queueName: research}",
        "evaluation={everyIterations: 1, images: 8}",
        "checkpoint={storage: /elsewhere, keep: 9}",
        "training.iterations=200",
        # Not changes at all:
        "lora.alpha=8",
        "lora.alpha=8.0",
        "model.name=tiny-animals",
        "method.continueFrom=winner",
        "sampling.trainedSteps={count: 5, choose: spread}",
    ],
)
def test_what_does_not_define_the_experiment(job: Job, change: str) -> None:
    assert experiment_hash(job(f"spec.{change}").spec) == experiment_hash(job().spec)


@pytest.mark.parametrize(
    "change",
    [
        "model.revision=abc",
        "lora.rank=4",
        "prompts={builtin: tiny-animals}",
        "rewards[0].weight=2",
        "method.beta=0.2",
        "sampling.eta=0.5",
        "optimizer.emaDecay=0.99",
        "training.seed=1",
        "training.promptsPerIteration=4",
        "training.precision=bf16",
    ],
)
def test_what_defines_the_experiment(job: Job, change: str) -> None:
    assert experiment_hash(job(f"spec.{change}").spec) != experiment_hash(job().spec)


HTTP = "rewards=[{name: http, weight: 2, endpoints: ['http://a:1']%s}]"


def test_how_a_scorer_is_reached_does_not_define_the_experiment(tmp_path: Path, job: Job) -> None:
    """A scorer may move while a run is suspended; what it measures and its weight may not change."""
    first = job("spec." + HTTP % "")
    open_run(open_store(tmp_path), first)
    moved = "spec.rewards=[{name: http, weight: 2, endpoints: ['http://b:2', 'http://c:3']}]"
    changes = [moved, *("spec." + HTTP % f", {each}" for each in ("timeoutSeconds: 5", "retries: 0", "batchSize: 1"))]
    for change in changes:
        assert experiment_hash(job(change).spec) == experiment_hash(first.spec)
        open_run(open_store(tmp_path), job(change))
    with pytest.raises(ConfigurationError, match=r"spec.rewards\[0\].weight: 2 there, 1 here"):
        open_run(open_store(tmp_path), job(moved, "spec.rewards[0].weight=1"))


def test_a_storage_in_which_the_scorers_address_counted_stays_the_same_experiment(tmp_path: Path, job: Job) -> None:
    open_run(open_store(tmp_path), job("spec." + HTTP % ""))
    path = tmp_path / "run.json"
    stored = json.loads(path.read_text())
    assert "endpoints" not in stored["defines"]["rewards"][0]
    stored["defines"]["rewards"][0] |= {"endpoints": ["http://a:1"], "retries": 2}
    path.write_text(json.dumps(stored | {"experiment": hash_of(stored["defines"])}))
    moved = job("spec." + HTTP % "", "spec.rewards[0].endpoints[0]=http://b:2")
    assert open_run(open_store(tmp_path), moved).record.experiment == hash_of(stored["defines"])


def test_the_canonical_form_is_as_documented(job: Job) -> None:
    """It must never change: every storage out there would become another experiment's."""
    text = '{"a":[1,0.1,null,true],"b":{"\\u00e4":"x"}}'
    assert hash_of({"b": {"ä": "x"}, "a": [1, 0.1, None, True]}) == hashlib.sha256(text.encode()).hexdigest()
    assert experiment_hash(job().spec) == hash_of(defining(job().spec))
    assert defining(job().spec)["lora"]["alpha"] == 8
    assert not {"workers", "checkpoint", "evaluation", "template"} & set(defining(job().spec))
    assert "iterations" not in defining(job().spec)["training"]


def test_differences_name_every_leaf() -> None:
    old = {"a": 1, "b": {"c": [1, 2]}, "gone": "x", "same": [{"d": 1}]}
    new = {"a": 2, "b": {"c": [1, 3, 4]}, "same": [{"d": 1}], "new": True}
    assert differences(old, new) == [
        Difference("spec.a", 1, 2),
        Difference("spec.b.c[1]", 2, 3),
        Difference("spec.b.c[2]", None, 4),
        Difference("spec.gone", "x", None),
        Difference("spec.new", None, True),
    ]
    assert differences(old, old) == []


def test_another_experiment_names_fields_values_and_the_way_out(tmp_path: Path, job: Job) -> None:
    open_run(open_store(tmp_path), job("spec.workers=2"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        open_run(open_store(tmp_path), job("spec.method.beta=0.2", "spec.model.revision=abc", "spec.workers=4"))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: holds the checkpoints of another experiment:",
        '  spec.model.revision: not set there, "abc" here',
        "  spec.method.beta: 0.1 there, 0.2 here",
        "Give this one its own storage (--output, or spec.checkpoint.storage), or take the change back.",
    ]
    assert caught.value.exit_code == ExitCode.CONFIGURATION
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == before


def test_another_job_names_both(tmp_path: Path, job: Job) -> None:
    open_run(open_store(tmp_path), job("metadata.namespace=research"))
    with pytest.raises(
        ConfigurationError, match=r"another job:\n  metadata.name: \"vivid-animals\" there, \"dull\" here"
    ):
        open_run(open_store(tmp_path), job("metadata.name=dull"))
    with pytest.raises(ConfigurationError, match=r"metadata.namespace: \"research\" there, \"home\" here"):
        open_run(open_store(tmp_path), job("metadata.namespace=home"))
    open_run(open_store(tmp_path), job())  # a laptop's document names no namespace


def test_the_storage_of_an_older_tailorpo_stays_the_same_experiment(tmp_path: Path, job: Job) -> None:
    """It did not know a field yet whose default means what it did."""
    open_run(open_store(tmp_path), job())
    path = tmp_path / "run.json"
    stored = json.loads(path.read_text())
    del stored["defines"]["training"]["samplesPerPrompt"]
    path.write_text(json.dumps(stored | {"experiment": "0" * 64}))
    assert open_run(open_store(tmp_path), job()).record.experiment == "0" * 64
    with pytest.raises(ConfigurationError, match=r"spec.training.seed: 0 there, 1 here"):
        open_run(open_store(tmp_path), job("spec.training.seed=1"))


def test_a_storage_that_lost_its_record_is_not_taken_over(tmp_path: Path, job: Job) -> None:
    open_run(open_store(tmp_path), job()).begin(None)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ConfigurationError, match=r"run\.json: is missing"):
        open_run(open_store(tmp_path), job())


def test_a_users_folder_with_other_things_is_fine(tmp_path: Path, job: Job) -> None:
    (tmp_path / "report.html").touch()
    assert open_run(open_store(tmp_path), job()).latest() is None
