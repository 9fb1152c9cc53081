"""The schema: what fits, what is cut, what never gets in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_trainer.errors import ConfigurationError, understood
from tailorpo_trainer.spec.progress import Checkpoint, Metrics, Part, Progress
from tailorpo_trainer.telemetry import termination

PAGE = Path(__file__).parents[3] / "docs" / "progress.md"

URI = "s3://bucket/" + "ü" * 2000
FULL = Progress(
    name="n" * 40,
    namespace="s" * 63,
    attempt=3,
    phase="Running",
    step=7,
    of=100,
    percent=7,
    eta_seconds=1.5,
    metrics=Metrics(reward=1.25, evaluation=-1e-300, gap=0.1, loss=0.7),
    checkpoint=Checkpoint(uri=URI, step=5, time="2026-01-01T00:00:00Z"),
    resumed_from=Checkpoint(uri=URI, step=1, time="2026-01-01T00:00:00Z"),
    adapter="/" + "a" * 2000,
)
TEXTS = ["", "x", "é☃" * 50_000, '\x00\x1f"\\' * 30_000, "line\n" * 20_000, "\ud800" * 9000, "😀" * 100_000]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("progress", [Progress(), FULL], ids=["empty", "full"])
def test_any_end_fits_and_says_how_far_it_was(progress: Progress, text: str, tmp_path: Path) -> None:
    ended = progress.ended(ConfigurationError(text))
    data = termination.encode(ended)
    assert len(data) <= 4096
    tree = json.loads(data)
    assert (tree["step"], tree.get("of"), tree["phase"]) == (progress.step, progress.of, "Failed")
    assert (tree["error"]["class"], tree["error"]["exitCode"]) == ("ConfigurationError", 78)
    termination.write(ended, tmp_path / "log")
    read = termination.read(tmp_path / "log")
    assert read is not None
    assert read.step == progress.step


@given(st.text(max_size=6000))
def test_a_text_is_cut_no_more_than_it_must_be(text: str) -> None:
    ended = Progress(name="a").ended(ConfigurationError(text))
    data = termination.encode(ended)
    assert ended.error is not None
    assert len(data) <= 4096
    if json.loads(data)["error"]["text"] != ended.error.text:
        assert len(data) > 4000


def test_what_fits_is_whole(tmp_path: Path) -> None:
    some = FULL.having(checkpoint=None, resumed_from=None)
    termination.write(some, tmp_path / "log")
    assert termination.read(tmp_path / "log") == some
    assert termination.read(tmp_path / "none") is None
    (tmp_path / "log").write_text('{"schemaVersion": 2, "phase": "Running"}')
    assert termination.read(tmp_path / "log") is None


def test_a_shorter_message_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    termination.write(FULL, path)
    inode = path.stat().st_ino
    termination.write(Progress(), path)
    assert json.loads(path.read_text())["phase"] == "Starting"
    assert path.stat().st_ino == inode  # a kubelet has mounted this very file


def test_no_secret_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7",
        "HF_TOKEN": "hf_abcdefgh",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    urls = "https://user:p@ss@host:9000/b?X-Amz-Signature=abc123 redis://:hunter22@cache/0 and s3://bucket/key"
    ended = FULL.having(checkpoint=Checkpoint(uri="http://me:hunter22@host/c", step=1, time="t")).ended(
        ConfigurationError(f"{urls}: {' '.join(secrets.values())}")
    )
    text = json.dumps(ended.tree())
    for secret in (*secrets.values(), "p@ss", "user:", "hunter22", "abc123"):
        assert secret not in text
    assert ended.error is not None
    assert ended.error.text == "https://host:9000/b?… redis://cache/0 and s3://bucket/key: *** *** ***"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_known(bad: float) -> None:
    tree = Progress(metrics=Metrics(loss=bad), eta_seconds=bad).tree()
    assert tree["metrics"] == {}
    assert "etaSeconds" not in tree


def test_memory_that_torch_cannot_have_is_no_bug() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    known = understood(caught.value)
    assert known is not None
    assert known.exit_code == 71


def test_the_page_names_every_key() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row[1])}
    assert {field.alias for field in Progress.model_fields.values()} == named & _keys(Progress)
    for part, key in ((Checkpoint, "checkpoint"), (Metrics, "metrics")):
        (row,) = (row for row in rows if row[1].strip() == f"`{key}`")
        assert set(re.findall(r"\w+", row[2])) == _keys(part)


def _keys(part: type[Part]) -> set[Any]:
    return {field.alias for field in part.model_fields.values()}


def test_in_a_pod_the_message_goes_where_its_kubelet_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(termination.VARIABLE, raising=False)
    monkeypatch.setattr(termination, "DEFAULT", tmp_path / "termination-log")
    termination.write(FULL)
    assert not list(tmp_path.iterdir())  # no pod: nothing is made
    termination.DEFAULT.touch()
    termination.write(FULL)
    assert termination.read(termination.DEFAULT) is not None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert termination.targets() == []  # of several processes in one pod, one writes
    named = [tmp_path / "one", tmp_path / "two"]
    monkeypatch.setenv(termination.VARIABLE, ":".join(map(str, named)))
    termination.write(Progress())
    assert all(termination.read(path) is not None for path in named)


def test_of_several_processes_it_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, expected in (("3", 3), ("", None), ("x", None)):
        monkeypatch.setenv("RANK", rank)
        error = Progress().ended(ConfigurationError("x")).error
        assert error is not None
        assert error.rank == expected
