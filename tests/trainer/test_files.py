"""How results are written: patient with what may pass, and never without the name of the file."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[Callable[[], None]]:
    """Inside, the kernel lets no file grow beyond so many bytes, as a quota does, until what is yielded is called.

    Not a fixture: pytest writes its own output before a fixture ends.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield lift
    finally:
        lift()


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.html"])
def test_a_disk_that_is_full_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path, waits = tmp_path / name, list[float]()
    files.append(path, "first\n")
    with files_of_at_most(8) as lift:

        def slept(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == files.TRIES - 1:
                assert path.read_text() == "first\n"  # no half of a line stays
                lift()

        monkeypatch.setattr(files, "sleep", slept)
        if name == "metrics.jsonl":
            files.append(path, "second line\n")
        else:
            files.replace(path, "first\nsecond line\n")
    assert len(waits) == files.TRIES - 1
    assert path.read_text() == "first\nsecond line\n"
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert f"{path}: not written, the disk or quota is full (File too large)" in caplog.text


def test_pauses_grow_to_about_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(files, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(files, "sleep", waits.append)
    with files_of_at_most(1):
        with pytest.raises(ResourceError, match=r"metrics\.jsonl: not written, the disk or quota is full"):
            files.append(tmp_path / "metrics.jsonl", "text")
        with files.one_try(), pytest.raises(ResourceError):
            files.append(tmp_path / "metrics.jsonl", "text")
    longest = [min(files.LONGEST_PAUSE, 2.0**number) for number in range(files.TRIES - 1)]
    assert len(waits) == files.TRIES - 1
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, longest, strict=True))


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
