"""What is damaged is skipped by name, what is newer than we are is refused."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer.checkpoint import (
    FORMAT_VERSION,
    CorruptError,
    MissingError,
    Ref,
    Run,
    Store,
    checkpoints,
    latest,
    load,
    open_run,
    open_store,
)
from tailorpo_trainer.errors import ConfigurationError, DataError, ExitCode, UnavailableError

Job = Callable[..., Any]

OBJECTS = ["adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"adapter": {"up": torch.full((3, 2), step)}, "optimizer": {"step": torch.tensor(float(step))}}


@pytest.fixture
def storage(run: Run) -> Path:
    """One attempt with checkpoints at steps 10, 20 and 30."""
    attempt = run.begin(None)
    for step in (10, 20, 30):
        attempt.save(step, tensors(step), {"samples": step * 8})
    return Path(run.store.uri(""))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_newest_comes_back_as_it_was(run: Run, storage: Path) -> None:
    loaded = latest(run.store)
    assert loaded is not None
    assert (loaded.attempt, loaded.step, loaded.state) == (1, 30, {"samples": 240})
    assert loaded.groups == ["adapter", "optimizer"]
    for group, expected in tensors(30).items():
        for name, tensor in loaded.tensors(group).items():
            assert tensor.dtype == expected[name].dtype
            assert torch.equal(tensor, expected[name])
    assert loaded.manifest.experiment == run.record.experiment
    assert {"python", "tailorpo", "torch", "safetensors"} <= set(loaded.manifest.versions)
    assert loaded.manifest.size == sum(
        path.stat().st_size for path in Path(loaded.uri).iterdir() if path.name != "manifest.json"
    )
    with pytest.raises(CorruptError, match=r"has no ema\.safetensors"):
        loaded.tensors("ema")


def test_nothing_is_unpickled(storage: Path) -> None:
    assert {path.suffix for path in storage.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", OBJECTS[:-1])
@pytest.mark.parametrize("damage", [flip, truncate, append, empty, Path.unlink])
def test_a_damaged_object_is_skipped_by_name(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    path = storage / "attempt-0001" / "step-00000030" / name
    damage(path)
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 20
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(path) in warning.message


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(20 << 30)  # sparse: it takes no space on the disk


def become_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("damage", [grow, become_endless, become_a_pipe, become_a_folder])
def test_what_may_not_be_read_whole_is_skipped_by_name(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    path = storage / "attempt-0001" / "step-00000030" / name
    damage(path)
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 20
    assert all(str(path) in record.message for record in caplog.records)


def test_where_no_checkpoint_is_valid_nothing_begins_again(run: Run, storage: Path) -> None:
    for step in (10, 20, 30):
        flip(storage / "attempt-0001" / f"step-{step:08d}" / "adapter.safetensors")
    with pytest.raises(DataError, match=r"no checkpoint there is valid, .*step-00000030.*SHA-256.* --fresh$"):
        latest(run.store)


def test_what_does_not_fit_is_passed_over(run: Run, storage: Path) -> None:
    loaded = latest(run.store, unfit={Ref(1, 30)})
    assert loaded is not None
    assert loaded.step == 20
    with pytest.raises(DataError, match="no checkpoint there is valid"):
        latest(run.store, unfit={Ref(1, 10), Ref(1, 20), Ref(1, 30)})


@pytest.mark.parametrize("state", ["[1]", "3", "null", "[" * 100_000])
def test_a_state_that_is_no_object(run: Run, storage: Path, state: str) -> None:
    folder = storage / "attempt-0001" / "step-00000030"
    (folder / "state.json").write_text(state)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"size": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    manifest["objects"]["state.json"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 20


@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_torn_manifest_is_skipped_by_name(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    path = storage / "attempt-0001" / "step-00000030" / "manifest.json"
    path.write_bytes(path.read_bytes().rstrip())
    damage(path)
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 20
    assert f"{path}: is not JSON" in caplog.text


def test_without_its_manifest_a_checkpoint_does_not_exist(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (storage / "attempt-0001" / "step-00000030" / "manifest.json").unlink()
    assert checkpoints(run.store) == [Ref(1, 10), Ref(1, 20)]
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 20
    assert caplog.records == []
    with pytest.raises(MissingError, match="step-00000030"):
        load(run.store, Ref(1, 30))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"step": 31}, "belongs to attempt-0001/step-00000031/"),
        ({"objects": {"../../run.json": {"size": 1, "sha256": "0" * 64}}}, "cannot be the name of an object"),
        ({"objects": {}}, "state.json: is missing or not a JSON object"),
        ({"objects": {"state.json": {"size": -1, "sha256": "0" * 64}}}, "objects.state.json.size"),
        ({"objects": None}, "objects: input should be a valid dictionary"),
        ({"experiment": "0" * 64}, "is of another experiment"),
    ],
)
def test_a_manifest_that_lies_is_skipped(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], expected: str
) -> None:
    path = storage / "attempt-0001" / "step-00000030" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    loaded = run.latest()
    assert loaded is not None
    assert loaded.step == 20
    assert expected in caplog.text
    assert "step-00000030" in caplog.text


def test_a_copied_checkpoint_is_not_taken_for_a_newer_one(
    run: Run, storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(storage / "attempt-0001" / "step-00000010", storage / "attempt-0001" / "step-00000040")
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 30
    assert "step-00000040" in caplog.text


@pytest.mark.parametrize("name", ["run.json", "attempt-0002/attempt.json", "attempt-0001/step-00000030/manifest.json"])
def test_a_newer_format_is_refused_with_both_versions(run: Run, storage: Path, job: Job, name: str) -> None:
    run.begin(run.latest())
    path = storage / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"formatVersion": FORMAT_VERSION + 1, "new": 1}))
    if name.startswith("attempt-0002"):  # is only read when its attempt has nothing to go on from
        (storage / "attempt-0001").rename(storage / "attempt-0000")
    with pytest.raises(ConfigurationError) as caught:
        open_run(open_store(storage), job()).latest()
    assert f"format version {FORMAT_VERSION + 1}" in str(caught.value)
    assert f"versions up to {FORMAT_VERSION}" in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIGURATION


def test_keys_of_a_later_minor_writer_are_ignored(run: Run, storage: Path) -> None:
    path = storage / "attempt-0001" / "step-00000030" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": True}))
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.step == 30


def test_an_object_that_is_no_safetensors_file_is_named(run: Run, storage: Path) -> None:
    loaded = latest(run.store)
    assert loaded is not None
    loaded.objects["adapter.safetensors"] = b"something else"
    with pytest.raises(CorruptError, match=r"adapter\.safetensors: is not a safetensors file"):
        loaded.tensors("adapter")


def test_a_checkpoint_that_is_pruned_while_it_is_read_is_no_damage(
    memory: Any, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """An older attempt, still alive, commits the next step and prunes just when we are in the middle."""
    store: Store = memory
    run = open_run(store, job())
    old = run.begin(None)
    old.save(10, tensors(10), {})

    def prune(method: str, name: str) -> None:
        if name.endswith("step-00000010/optimizer.safetensors"):
            memory.before = lambda method, name: None
            old.save(20, tensors(20), {})
            old.prune(1)

    memory.before = prune
    loaded = run.latest()
    assert loaded is not None
    assert loaded.step == 20
    assert caplog.records == []


def test_checkpoints_that_always_vanish_end_in_an_error(memory: Any, job: Job) -> None:
    run = open_run(memory, job())
    run.begin(None).save(10, tensors(10), {})

    def vanish(method: str, name: str) -> None:
        if name.endswith("manifest.json"):
            raise MissingError(name)

    memory.before = vanish
    with pytest.raises(UnavailableError, match="vanish"):
        run.latest()
