"""Results beside checkpoints in S3: whole in each attempt, pictures once, and the history back on an empty machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import checkpoint
from tailorpo_trainer.checkpoint import Store, capture, open_store
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import ConfigurationError, UnavailableError
from tailorpo_trainer.results import locations
from tailorpo_trainer.results.publishing import Publisher, restore
from tailorpo_trainer.results.run_folder import RunFolder


def a_job(**kept: Any) -> Any:
    return parse(
        {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": "vivid"},
            "spec": {
                "prompts": {"builtin": "animals"},
                "rewards": [{"name": "colourfulness"}],
                "method": {"name": "tailorpo"},
                "checkpoint": kept,
            },
        }
    )


def machine(folder: Path, upto: int, pictures: tuple[int, ...] = (), text: str = "") -> RunFolder:
    """An output folder after `upto` iterations, with evaluations at some of them."""
    output = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    for step in pictures:
        output.sample(step, 0).parent.mkdir(parents=True, exist_ok=True)
        output.sample(step, 0).write_bytes(f"picture {step} {text}".encode())
    lines = [{"kind": "iteration", "iteration": step, "loss": step / 10} for step in range(1, upto + 1)]
    output.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "iter')
    for path in (output.job, output.prompts, output.environment, output.progress):
        path.write_text(f"{path.name} {text}")
    return output


@pytest.fixture
def store(s3_bucket: str) -> Store:
    return open_store(f"s3://{s3_bucket}/run")


def begin(store: Store, step: int | None = None) -> int:
    """The next attempt's number; with a step, the one before is given a checkpoint there first."""
    run = checkpoint.open_run(store, a_job())
    if step is not None:
        number = max(ref_attempts(store))
        start = checkpoint.Attempt(store, run.record.experiment, number, None)
        start.commit(capture(step, {}, {}))
    return run.begin(run.latest()).number


def ref_attempts(store: Store) -> list[int]:
    return [int(name[8:12]) for name in store.names("attempt-")]


def test_each_attempt_is_whole_and_pictures_are_put_once(store: Store, tmp_path: Path) -> None:
    first = machine(tmp_path / "a", 10, (0, 10))
    publisher = Publisher(store, begin(store), first)
    publisher.publish_history(5)
    assert store.names("attempt-0001/output/") == [
        "attempt-0001/output/metrics.jsonl", "attempt-0001/output/samples/iteration-000000/000.png"
    ]  # fmt: skip
    publisher.publish_history(10)
    publisher.publish_results()
    second = begin(store, 10)
    empty = RunFolder(tmp_path / "b")
    empty.root.mkdir()
    stored = restore(store, 1, 10, empty)
    assert empty.read_metrics() == first.read_metrics()
    assert empty.sample(10, 0).read_bytes() == b"picture 10 "
    machine(tmp_path / "b", 15, (15,))
    publisher = Publisher(store, second, empty, stored)
    publisher.publish_history(15)
    (empty.adapter / "more").mkdir(parents=True)
    (empty.adapter / "more" / "weights").write_bytes(b"")
    empty.report.write_text("report")
    publisher.publish_all()
    assert store.names("attempt-0002/output/") == [
        f"attempt-0002/output/{name}"
        for name in (
            "adapter/more/weights", "environment.json", "job.yaml", "metrics.jsonl", "progress.json",
            "prompts.json", "report.html", "samples/iteration-000015/000.png",
        )
    ]  # fmt: skip
    begin(store, 15)
    third = RunFolder(tmp_path / "c")
    third.root.mkdir()
    assert len(restore(store, 2, 15, third)) == 3
    assert [third.sample(step, 0).exists() for step in (0, 10, 15)] == [True, True, True]


def test_only_the_history_up_to_the_checkpoint_comes_back(store: Store, tmp_path: Path) -> None:
    Publisher(store, begin(store), machine(tmp_path / "a", 20, (0, 10, 20))).publish_all()
    begin(store, 10)
    output = RunFolder(tmp_path / "b")
    output.root.mkdir()
    restore(store, 1, 10, output)
    assert [line["iteration"] for line in output.read_metrics()] == list(range(1, 11))
    assert not output.sample(20, 0).exists()


def test_a_folder_that_knows_more_is_left_alone_and_another_run_s_is_replaced(store: Store, tmp_path: Path) -> None:
    Publisher(store, begin(store), machine(tmp_path / "a", 10, (0, 10))).publish_all()
    begin(store, 10)
    mine = machine(tmp_path / "b", 10, (0,))
    restore(store, 1, 10, mine)
    assert mine.sample(10, 0).read_bytes() == b"picture 10 "
    other = machine(tmp_path / "c", 10, (0, 7), "of another")
    other.metrics.write_text(other.metrics.read_text().replace("0.", "1."))
    restore(store, 1, 10, other)
    assert other.read_metrics() == mine.read_metrics()
    assert other.sample(0, 0).read_bytes() == b"picture 0 "
    assert not other.sample(7, 0).exists()


def test_what_cannot_be_copied_is_a_warning_and_comes_with_the_next(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output, number = machine(tmp_path / "a", 10), begin(store)
    publisher = Publisher(store, number, output)

    def refuse(*_: Any, **__: Any) -> Any:
        raise UnavailableError("no answer")

    with monkeypatch.context() as patch:
        for method in ("write", "names", "read"):
            patch.setattr(store, method, refuse)
        publisher.publish_all()
        assert restore(store, number, 10, output) == set()
    assert caplog.text.count("no answer") == 2
    publisher.publish_all()
    assert "attempt-0001/output/job.yaml" in store.names("attempt-0001/output/")


def test_pruning_leaves_the_results_alone(store: Store, tmp_path: Path) -> None:
    run = checkpoint.open_run(store, a_job())
    attempt = run.begin(None)
    Publisher(store, 1, machine(tmp_path / "a", 10, (0, 10))).publish_all()
    before = store.names("attempt-0001/output/")
    for step in (10, 20, 30):
        attempt.save(step, {}, {})
    attempt.prune(1)
    after = run.begin(run.latest())
    after.save(40, {}, {})
    after.prune(1)
    assert store.names("attempt-0001/output/") == before
    assert [ref.step for ref in checkpoint.checkpoints(store)] == [40]


# Where they are


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "documents"
    plain = locations.choose(a_job(), None, base)
    assert (plain.output, plain.storage, plain.in_s3) == (Path("runs/vivid"), "runs/vivid", False)
    folder = locations.choose(a_job(storage="kept"), None, base)
    assert (folder.output, folder.storage) == (base / "kept", str(base / "kept"))
    assert locations.choose(a_job(storage="file:///kept"), None, base).output == Path("/kept")
    given = locations.choose(a_job(storage="s3://bucket/run", region="x"), Path("here"), base)
    assert (given.output, given.storage, given.in_s3) == (Path("here"), "here", False)
    assert given.job.spec.checkpoint.storage is None
    assert given.job.spec.checkpoint.region is None
    in_s3 = locations.choose(a_job(storage="s3://bucket/run", caFile="ca.pem", keep=7), None, base)
    assert (in_s3.output, in_s3.storage, in_s3.in_s3) == (Path("runs/vivid"), "s3://bucket/run", True)
    assert in_s3.job.spec.checkpoint.ca_file == str(base / "ca.pem")
    assert in_s3.job.spec.checkpoint.keep == 7


def test_how_a_server_is_asked_is_no_part_of_the_experiment() -> None:
    settings = {
        "endpoint": "http://127.0.0.1:1", "region": "x", "pathStyle": True, "caFile": "c", "sseKmsKeyId": "k"
    }  # fmt: skip
    other = a_job(storage="s3://b/p", maxFailures=9, keep=9, **settings)
    assert checkpoint.experiment_hash(other.spec) == checkpoint.experiment_hash(a_job().spec)


def test_settings_without_a_server_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"spec\.checkpoint\.pathStyle: needs spec\.checkpoint\.storage to be"):
        a_job(storage="kept", pathStyle=False)
