"""The schema: what fits, what is cut, what never gets in."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_trainer.errors import ConfigurationError, as_user_error
from tailorpo_trainer.spec.progress import (
    MAX_BYTES,
    SEARCHED_END,
    SEARCHED_LENGTH,
    Checkpoint,
    Metrics,
    Progress,
    ProgressModel,
    redact,
)
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
    values = json.loads(data)
    assert (values["step"], values.get("of"), values["phase"]) == (progress.step, progress.of, "Failed")
    assert (values["error"]["class"], values["error"]["exitCode"]) == ("ConfigurationError", 78)
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
    some = FULL.replace(checkpoint=None, resumed_from=None)
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


def test_an_end_is_not_lost_to_a_checkpoint_that_completes_meanwhile() -> None:
    reporter = termination.TerminationReporter(Progress(step=3))
    ending = threading.Thread(target=reporter.end, args=(ConfigurationError("bad"),))

    def checkpoint_saved(progress: Progress) -> Progress:
        ending.start()
        time.sleep(0.1)  # time for the other thread to report the end
        return progress.replace(checkpoint=Checkpoint(uri="x", step=3, time="t"))

    reporter.update(checkpoint_saved)
    ending.join()
    last = reporter.progress
    assert last.error is not None
    assert last.checkpoint is not None


def test_no_secret_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7",
        "HF_TOKEN": "hf_abcdefgh",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    urls = "https://user:p@ss@host:9000/b?X-Amz-Signature=abc123 redis://:hunter22@cache/0 and s3://bucket/key"
    ended = FULL.replace(checkpoint=Checkpoint(uri="http://me:hunter22@host/c", step=1, time="t")).ended(
        ConfigurationError(f"{urls}: {' '.join(secrets.values())}")
    )
    text = json.dumps(ended.to_dict())
    for secret in (*secrets.values(), "p@ss", "user:", "hunter22", "abc123"):
        assert secret not in text
    assert ended.error is not None
    assert ended.error.text == "https://host:9000/b?… redis://cache/0 and s3://bucket/key: *** *** ***"


SECRET = "".join(f"{letter}{number}" for number in range(10, 30) for letter in "QZX")
"""Any four characters of it are found nowhere else."""


def parts(secret: str) -> set[str]:
    return {secret[position : position + 4] for position in range(len(secret) - 3)}


@pytest.mark.parametrize(
    "text",
    [
        f"DB_PASS={SECRET}",
        f"cannot run [AUTH={SECRET}, 1]",
        f"env: MY_KEY = {SECRET}",
        f"MY_KEY='{SECRET}' failed",
        f'--db-password="two words {SECRET}" --retries=3',
        f'db.token="it\'s \\" {SECRET}',
        f"connect(host='h', password='{SECRET}')",
        f"a=b;GITHUB_TOKEN={SECRET}",
        f"https://{SECRET}:{SECRET}@host/path",
        f"_://{SECRET}@host",
        f"see https://host/path?a=b&c={SECRET}#there",
        f"a://b://c?{SECRET}",
    ],
)
def test_a_secret_is_known_by_what_stands_before_it(text: str) -> None:
    assert not any(part in redact(text) for part in parts(SECRET))


@pytest.mark.parametrize(
    "text",
    [
        "spec.template.hubToken: must have a key",
        "the key 'a' is missing: token or password?",
        "author=me key=3 monkey=4 tokenizer=clip passed=2 PWD=/home/me",
        "auth == 3 and token",
        "s3://bucket/sort_key=1/step-00000003",
        "mailto:a@b.c and git@host:path, at https://host:9000/a@b",
        "two\nlines\tand a tab",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DB_PASS", "AUTH", "MY_KEY", "DB_PWD", "SIGNING_KEY_2", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
        assert redact(f"it said {SECRET}.") == "it said ***."
        monkeypatch.delenv(name)
    for name in ("PWD", "AUTHOR", "MONKEY", "COMPASS"):
        monkeypatch.setenv(name, SECRET)
        assert redact(f"it said {SECRET}.") == f"it said {SECRET}."
        monkeypatch.delenv(name)


def test_of_two_secrets_one_may_be_a_part_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET[:20])
    monkeypatch.setenv("B_TOKEN", SECRET)
    assert redact(f"{SECRET} {SECRET[:20]}") == "*** ***"


@pytest.mark.parametrize("position", [SEARCHED_LENGTH, -SEARCHED_END], ids=["beginning", "end"])
@pytest.mark.parametrize("around", [" ", "x", "x\n", "https://user:password@host "], ids=range(4))
@pytest.mark.parametrize(
    "secret_text",
    [
        f"https://user:{SECRET}@host/path",
        f"https://host/path?a={SECRET}",
        f"DB_PASS={SECRET}",
        f'DB_PASS="{SECRET[:20]} {SECRET[20:40]} {SECRET[40:]}"',
        SECRET,
        f"{SECRET[:20]} {SECRET[20:]}",
    ],
    ids=["user", "query", "assigned", "quoted", "environment", "words"],
)
def test_a_secret_that_is_cut_in_two_is_not_shown(
    secret_text: str, around: str, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the beginning and the end of a long text are searched, so a secret may lie across their borders."""
    if secret_text.startswith(SECRET[:20]):
        monkeypatch.setenv("MY_TOKEN", secret_text)
    size = 2 * (SEARCHED_LENGTH + SEARCHED_END)
    for shift in range(-len(secret_text) - 2, 7, 7):
        start = position % size + shift
        before = (around * start)[: start - 1] + " "
        text = f"{before}{secret_text} {around * size}"[:size]
        shown = redact(text)
        assert len(shown) <= SEARCHED_LENGTH + SEARCHED_END + 10
        assert not any(part in shown for part in parts(SECRET)), shift


def test_a_long_word_is_shown_in_part() -> None:
    error = Progress().ended(ConfigurationError("A" * 100_000)).error
    assert error is not None
    assert error.text.startswith("A" * 6000)


def test_nothing_moves_the_cursor_of_who_reads_it() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 \u202egnp.exe\u2066 \r\x00\x9b\x7f\u2028 second\nthird\tline"
    progress = Progress(name=hostile, message=hostile, adapter=hostile).ended(ConfigurationError(hostile))
    error = progress.error
    assert error is not None
    for text in (progress.name, progress.message, error.text.replace("\n", "").replace("\t", "")):
        assert text is not None
        assert text.isprintable()
    assert error.text.endswith("second\nthird\tline")  # in the trainer's own file lines stay lines


HOSTILE = {
    "nothing": "",
    "deep": "[" * 10_000,
    "deep objects": '{"a":' * 3000,
    "deep and whole": '{"x":' + "[" * 5000 + "]" * 5000 + "}",
    "a long number": "1" * 5000,
    "a long unknown number": '{"x":' + "1" * 5000 + "}",
    "a long step": '{"step":' + "1" * 4000 + "}",
    "a long step as text": '{"step":"' + "1" * 4000 + '"}',
    "a step beyond all numbers": '{"step":1e999}',
    "a large step": '{"step":1e300}',
    "half a character": '{"message":"\\ud800"}',
    "another kind": "[1]",
    "another version": '{"schemaVersion":2}',
    "too much": '{"message":"' + " " * MAX_BYTES + '"}',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_progress_is_none(what: str) -> None:
    assert Progress.read(HOSTILE[what]) is None
    assert Progress.read(HOSTILE[what].encode()) is None


def test_bytes_that_are_no_text_are_no_progress() -> None:
    assert Progress.read(b"\xff\xfe{}") is None
    assert Progress.read(b'{"message":"\xed\xa0\x80"}') is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_known(bad: float) -> None:
    values = Progress(metrics=Metrics(loss=bad), eta_seconds=bad).to_dict()
    assert values["metrics"] == {}
    assert "etaSeconds" not in values
    read = Progress.read(f'{{"etaSeconds":"{bad}"}}')
    assert read is not None
    assert read.eta_seconds is None


def test_memory_that_torch_cannot_have_is_no_bug() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    known = as_user_error(caught.value)
    assert known is not None
    assert known.exit_code == 71


def test_the_page_names_every_key() -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row[1])}
    assert {field.alias for field in Progress.model_fields.values()} == named & _keys(Progress)
    for part, key in ((Checkpoint, "checkpoint"), (Metrics, "metrics")):
        (row,) = (row for row in rows if row[1].strip() == f"`{key}`")
        assert set(re.findall(r"\w+", row[2])) == _keys(part)


def _keys(part: type[ProgressModel]) -> set[Any]:
    return {field.alias for field in part.model_fields.values()}


def test_in_a_pod_the_message_goes_where_its_kubelet_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(termination.VARIABLE, raising=False)
    monkeypatch.setattr(termination, "DEFAULT", tmp_path / "termination-log")
    termination.write(FULL)
    assert not list(tmp_path.iterdir())  # no pod: nothing is created
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
