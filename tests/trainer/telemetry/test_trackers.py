"""What MLflow and Weights & Biases have of a run, over a resume too, as their own libraries read it."""

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Install = Callable[[Callable[[int], Any]], None]
PARTS: dict[str, Any] = {
    "evaluation": {"everyIterations": 2, "images": 4},
    "checkpoint": {"everyIterations": 1},
    "training": {"iterations": 4, "promptsPerIteration": 3},
}


@pytest.fixture
def resumed(start: Any, probe: Install) -> Callable[[str], None]:
    """A run with this option that fails in iteration 3, and its resume; all its rewards are 0, which is an alarm."""

    def run(option: str) -> None:
        def fail(call: int) -> float:
            if call == 8:
                raise KeyError("weights")
            return 0.0

        probe(fail)
        assert start(option, **PARTS) == 70
        probe(lambda call: 0.0)
        assert start(option, **PARTS) == 0

    return run


def test_mlflow(resumed: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    resumed("--mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tailorpo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("test", "FINISHED")
    assert run.data.tags["tailorpo.job"] == "research/test"
    assert run.data.tags["alarm.gap-at-zero"].startswith("no pair had a winner")
    loss = [point.step for point in client.get_metric_history(run.info.run_id, "training/loss")]
    assert sorted(set(loss)) == [1, 2, 3, 4]
    reward = client.get_metric_history(run.info.run_id, "evaluation/reward")
    assert sorted(point.step for point in reward) == [0, 2, 4]
    curves = {"training/phase_seconds/rollout", "evaluation/rewards/probe", "checkpoint/seconds"}
    assert curves <= run.data.metrics.keys()


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which W&B writes after a header of seven bytes.

    Each part has a checksum (4 bytes), its length (2), and a type (1: whole, first, middle, last); none is in two
    blocks of 32 KiB. Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    position, record = 7, b""
    while position < len(data):
        if (rest := 2**15 - position % 2**15) < 7:
            position += rest
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_weights_and_biases(resumed: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    resumed("--wandb")
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    runs, points, summary = set(), [], set()
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        for record in map(Record.FromString, logged(file.read_bytes())):
            if record.HasField("run"):
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            summary |= {item.key or "/".join(item.nested_key) for item in record.summary.update}
            if record.HasField("history"):
                values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                points.append(values)
    assert len(folders) == 2
    assert "alarm/gap-at-zero" in summary
    ((identity, *names),) = runs
    assert (len(identity), names) == (16, ["tailorpo", "test"])
    assert {int(point["iteration"]) for point in points if "training/loss" in point} == {1, 2, 3, 4}
    assert [int(point["iteration"]) for point in points if "evaluation/reward" in point] == [0, 2, 4]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_without_its_library_it_is_one_sentence(
    name: str, start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert start(f"--{name}", rewards=[{"name": "colourfulness"}]) == 78
    assert capsys.readouterr().err == f"error: --{name}: it is not installed: pip install 'tailorpo[{name}]'\n"
