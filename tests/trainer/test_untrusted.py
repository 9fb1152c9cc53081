"""Foreign bytes are bounded before they are read."""

import os
from pathlib import Path

import pytest

from tailorpo_trainer.untrusted import parse_json, read_file, read_json


def test_a_regular_file_of_at_most_so_many_bytes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"12345")
    assert read_file(file, 5) == b"12345"
    with pytest.raises(OSError, match=r"has 5 bytes, and at most 4 are read"):
        read_file(file, 4)
    with file.open("r+b") as sparse:
        sparse.truncate(20 << 30)  # takes no space on the disk, and none in memory
    with pytest.raises(OSError, match=r"has 21,474,836,480 bytes, and at most 1,000 are read"):
        read_file(file, 1000)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("fifo", "link"):
        with pytest.raises(OSError, match="is not a regular file"):
            read_file(tmp_path / name, 1000)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 1000)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 1000)


def test_files_without_a_size_are_read() -> None:
    assert b"processor" in read_file(Path("/proc/cpuinfo"), 1 << 20)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "", "{", b"\xff\xfe[1]x"])
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is the parser's
        parse_json(text)


def test_json_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text('{"ä": [1]}')
    assert read_json(file) == {"ä": [1]}
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_json(file)
