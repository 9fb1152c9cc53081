"""The folder store: whole objects or none, one winner, and errors that name the path."""

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer.checkpoint import ExistsError, MissingError, Store, open_store
from tailorpo_trainer.checkpoint.storage.folder import FolderStore
from tailorpo_trainer.errors import ConfigurationError, ExitCode, ResourceError, UnavailableError


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_what_is_written_is_read(store: Store) -> None:
    store.write("attempt-0001/step-00000001/state.json", b"one")
    store.write("attempt-0001/step-00000001/state.json", b"other")
    assert store.read("attempt-0001/step-00000001/state.json") == b"other"
    assert store.size("attempt-0001/step-00000001/state.json") == 5


def test_names_are_those_with_the_prefix(store: FolderStore) -> None:
    for name in ("run.json", "attempt-0001/attempt.json", "attempt-0001/step-1/a", "attempt-0010/b", "adapter/c"):
        store.write(name, b"")
    (store.root / "attempt-0001" / ".nfs0001").touch()
    assert store.names("attempt-0001/") == ["attempt-0001/attempt.json", "attempt-0001/step-1/a"]
    assert store.names("attempt-") == ["attempt-0001/attempt.json", "attempt-0001/step-1/a", "attempt-0010/b"]
    assert store.names("run") == ["run.json"]
    assert store.names("nothing/") == []


def test_an_absent_storage_is_empty_and_stays_absent(store: FolderStore) -> None:
    assert store.names("") == []
    with pytest.raises(MissingError, match=r"run\.json"):
        store.read("run.json")
    with pytest.raises(MissingError, match=r"run\.json"):
        store.size("run.json")
    store.delete(["attempt-0001/step-00000001/manifest.json"])
    store.delete_unfinished("attempt-0001/")
    assert not store.root.exists()


def test_deleting_leaves_no_empty_folder_but_the_root(store: FolderStore) -> None:
    store.write("a/b/c", b"")
    store.write("a/d", b"")
    store.delete(["a/b/c", "a/b/never-there"])
    assert store.names("") == ["a/d"]
    assert not (store.root / "a" / "b").exists()
    store.delete(["a/d"])
    assert list(store.root.iterdir()) == []


def test_others_may_read_what_was_written(store: FolderStore) -> None:
    previous = os.umask(0o022)
    try:
        store.write("run.json", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((store.root / "run.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["../run.json", "/run.json", "a//b", ".hidden", "a/.hidden/b", ""])
def test_a_name_never_leads_out(store: Store, name: str) -> None:
    with pytest.raises(AssertionError, match="not the name of an object"):
        store.write(name, b"")


def no_links(*_: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("links", [True, False])
def test_of_many_claims_one_wins(store: FolderStore, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    barrier = threading.Barrier(8)
    winners = []

    def claim(number: int) -> None:
        barrier.wait()
        try:
            store.write("attempt-0001/attempt.json", b"%d" % number, if_absent=True)
        except ExistsError:
            return
        winners.append(b"%d" % number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [store.read("attempt-0001/attempt.json")]
    assert hidden(store.root) == []


def test_the_same_bytes_are_our_own_retry(store: Store) -> None:
    store.write("manifest.json", b"mine", if_absent=True)
    store.write("manifest.json", b"mine", if_absent=True)
    with pytest.raises(ExistsError, match=r"manifest\.json"):
        store.write("manifest.json", b"another's", if_absent=True)


def test_unfinished_files_are_no_objects_and_are_swept_where_asked(store: FolderStore) -> None:
    store.write("attempt-0001/attempt.json", b"")
    torn = [
        store.root / "attempt-0001" / "step-00000001" / ".adapter.safetensors.0123456789abcdef.tmp",
        store.root / "attempt-0001" / ".attempt.json.0123456789abcdef.tmp",
        store.root / "attempt-0002" / ".attempt.json.0123456789abcdef.tmp",
        store.root / ".run.json.0123456789abcdef.tmp",
        store.root / ".a-users-own-file.tmp",
    ]
    for path in torn:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"torn")
    assert store.names("") == ["attempt-0001/attempt.json"]
    store.delete_unfinished("attempt-0001/")
    assert [path.exists() for path in torn] == [False, False, True, True, True]
    assert not (store.root / "attempt-0001" / "step-00000001").exists()
    store.delete_unfinished("run.json")
    assert [path.exists() for path in torn] == [False, False, True, False, True]
    assert store.names("") == ["attempt-0001/attempt.json"]


def test_a_writer_whose_file_is_swept_begins_again(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace
    deleted_from: list[Path] = []

    def sweep_once(source: Path, target: Path) -> None:
        if not deleted_from:
            deleted_from.append(source)
            store.delete_unfinished("attempt-0001/")
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_once)
    store.write("attempt-0001/step-00000001/state.json", b"whole")
    assert deleted_from
    assert store.read("attempt-0001/step-00000001/state.json") == b"whole"


def test_a_file_that_may_not_grow_further_is_a_full_disk(store: FolderStore) -> None:
    """The kernel itself refuses the write here (EFBIG), after a part of the file is on the disk."""
    store.write("state.json", b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(ResourceError, match=r"state\.json: not written, the disk or quota is full") as caught:
            store.write("state.json", bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == ExitCode.OUT_OF_RESOURCES
    assert store.read("state.json") == b"before"
    assert hidden(store.root) == []


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EDQUOT, ResourceError),
        (errno.EACCES, ConfigurationError),
        (errno.EROFS, ConfigurationError),
        (errno.EIO, UnavailableError),
        (errno.ESTALE, UnavailableError),
    ],
)
def test_errors_of_the_system_name_the_place(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[Exception]
) -> None:
    """Injected at the system call: a real full disk needs a file system of its own, and root may write anywhere."""
    store.write("a", b"before")
    original: Callable[..., Any] = getattr(os, call)

    def refuse(*args: Any, **options: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return original(*args, **options)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(expected, match=f"{store.root}.*{os.strerror(code)}"):
            store.write("a", b"after")
    assert store.read("a") == b"before"
    assert hidden(store.root) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_names_the_folder(store: FolderStore) -> None:
    store.root.mkdir()
    store.root.chmod(0o555)
    with pytest.raises(ConfigurationError, match=f"{store.root}: no permission"):
        store.write("a", b"")


@pytest.mark.parametrize("at", ["storage", "storage/attempt-0001"])
def test_a_file_in_the_way_names_the_folder(store: FolderStore, at: str) -> None:
    path = store.root.parent / at
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(ConfigurationError, match=f"{store.root}: is not usable as a folder"):
        store.write("attempt-0001/attempt.json", b"")
    with pytest.raises(ConfigurationError, match=f"{store.root}: is not usable as a folder"):
        store.names("attempt-0001/")


def test_a_mount_that_cannot_sync_folders_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    store.write("a", b"there")
    assert store.read("a") == b"there"


def test_data_and_folder_are_on_the_disk_before_and_after_the_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/first", b"")
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    store.write("a/b", b"")
    assert calls == ["file", "name", "folder", "folder"]


def test_places_that_a_user_may_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for place in ("runs", "~/runs", tmp_path / "runs", f"file://{tmp_path}/runs"):
        assert open_store(place).uri("run.json") == str(tmp_path / "runs" / "run.json")
    for place in ("gs://bucket/prefix", "file://host/runs"):
        with pytest.raises(ConfigurationError, match=f"{place}.*give a folder"):
            open_store(place)
