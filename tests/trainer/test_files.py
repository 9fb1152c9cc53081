"""How results are written: patient with what may pass, and never without the name of the file."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tailorpo_trainer import files
from tailorpo_trainer.errors import ConfigurationError, ResourceError, TailorPOError, UnavailableError

Write = Callable[[Path], None]
WRITES: dict[str, Write] = {
    "replace": lambda path: files.replace(path, "some text"),
    "append": lambda path: files.append(path, "some text"),
    "remove": files.remove,
    "make_folder": lambda path: files.make_folder(path / "below"),
}


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Sets the size from which on the kernel refuses to let a file grow, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_for_a_while_is_waited_for(
    tmp_path: Path,
    largest_file: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, text = tmp_path / "metrics.jsonl", tmp_path / "report.html"
    files.append(table, "first\n")
    for write in (lambda: files.append(table, "second line\n"), lambda: files.replace(text, "a whole page")):
        waits: list[float] = []
        before = table.read_text()

        def slept(seconds: float, waits: list[float] = waits, before: str = before) -> None:
            waits.append(seconds)
            if len(waits) == files.TRIES - 1:
                assert table.read_text() == before  # no half of a line stays
                largest_file(0)

        monkeypatch.setattr(files, "sleep", slept)
        largest_file(8)
        write()
        assert len(waits) == files.TRIES - 1
    assert (table.read_text(), text.read_text()) == ("first\nsecond line\n", "a whole page")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "report.html"}
    assert "metrics.jsonl: not written, the disk or quota is full (File too large)" in caplog.text


def test_pauses_grow_to_about_a_minute(
    tmp_path: Path, largest_file: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(files, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(files, "sleep", waits.append)
    largest_file(1)
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: not written, the disk or quota is full"):
        files.append(tmp_path / "metrics.jsonl", "text")
    longest = [min(files.LONGEST_PAUSE, 2.0**number) for number in range(files.TRIES - 1)]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, longest, strict=True))
    with files.one_try(), pytest.raises(ResourceError):
        files.append(tmp_path / "metrics.jsonl", "text")
    assert len(waits) == files.TRIES - 1


@pytest.mark.parametrize(
    ("number", "expected", "tries"),
    [
        (errno.EROFS, ConfigurationError, 1),
        (errno.EACCES, ConfigurationError, 1),
        (errno.ENOTDIR, ConfigurationError, 1),
        (errno.ENAMETOOLONG, ConfigurationError, 1),
        (errno.ENOSPC, ResourceError, files.TRIES),
        (errno.EDQUOT, ResourceError, files.TRIES),
        (errno.ESTALE, UnavailableError, files.TRIES),
        (errno.EIO, UnavailableError, files.TRIES),
        (errno.ENOTCONN, UnavailableError, files.TRIES),
    ],
    ids=lambda value: errno.errorcode[value] if value in errno.errorcode and value > 7 else "",
)
def test_each_error_of_a_file_system_has_its_meaning(
    tmp_path: Path, number: int, expected: type[TailorPOError], tries: int
) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(expected, match=os.strerror(number)) as caught:
        files.persistently(tmp_path / "a.json", action)
    assert str(tmp_path / "a.json") in str(caught.value)
    assert len(calls) == tries


@pytest.mark.parametrize("name", WRITES)
def test_a_place_that_is_none_is_said_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/file"):
        WRITES[name](tmp_path / "file" / "a")


def test_a_folder_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"gone/metrics\.jsonl: the storage does not answer"):
        files.append(tmp_path / "gone" / "metrics.jsonl", "text")
    files.replace(tmp_path / "new" / "a", b"bytes")
    assert (tmp_path / "new" / "a").read_bytes() == b"bytes"


def test_what_may_not_be_appended_leaves_the_file_alone(tmp_path: Path) -> None:
    files.append(tmp_path / "a", "one", lambda: True)
    files.append(tmp_path / "a", "two", lambda: False)
    assert (tmp_path / "a").read_text() == "one"
