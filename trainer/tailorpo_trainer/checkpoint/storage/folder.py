"""A store in a folder. A write is: temporary file, fsync, atomic rename, fsync of the folder."""

import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tailorpo_trainer.checkpoint.format import RECORD_BYTES, CorruptError, OversizedError
from tailorpo_trainer.checkpoint.storage.base import ExistsError, MissingError
from tailorpo_trainer.checkpoint.storage.durable import fill, link_if_absent, make_folder, sync
from tailorpo_trainer.errors import error_of_file
from tailorpo_trainer.untrusted import read_file

TEMPORARY = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{16}\.tmp$")


class FolderStore:
    """Objects are files below `root`, which the first write creates. Hidden files are not objects."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def write(self, name: str, data: bytes | memoryview, *, if_absent: bool = False) -> None:
        path = self._path(name)
        with self._translated_errors(path):
            for tries_left in (2, 1, 0):
                try:
                    return self._write(path, data, if_absent)
                except FileNotFoundError:
                    # A newer attempt deleted our temporary file, or the empty folder.
                    if not tries_left:
                        raise

    def read(self, name: str, most: int = RECORD_BYTES) -> bytes:
        path = self._path(name)
        with self._translated_errors(path):
            try:
                return read_file(path, most)
            except FileNotFoundError:
                raise MissingError(f"{path}: is missing") from None
            except OSError as error:
                if error.errno == errno.EFBIG:
                    raise OversizedError(str(path), path.stat().st_size, most) from None
                if error.errno in (errno.EINVAL, errno.EISDIR):  # a device, a pipe, a folder
                    raise CorruptError(f"{path}: is not a regular file") from None
                raise

    def size(self, name: str) -> int:
        path = self._path(name)
        with self._translated_errors(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                raise MissingError(f"{path}: is missing") from None

    def names(self, prefix: str) -> list[str]:
        found = [here + file for here, _, files in self._walk(prefix) for file in files if file[0] != "."]
        return sorted(name for name in found if name.startswith(prefix))

    def folders(self, prefix: str) -> list[str]:
        with self._translated_errors(self.root), suppress(FileNotFoundError), os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_dir())
        return []

    def delete(self, names: Iterable[str]) -> None:
        paths = [self._path(name) for name in names]
        for path in paths:
            with self._translated_errors(path), suppress(FileNotFoundError):
                path.unlink()
        for folder in {path.parent for path in paths}:
            # Otherwise a power cut could bring back a manifest whose objects are deleted next.
            with self._translated_errors(folder), suppress(FileNotFoundError):
                sync(folder)
            self._remove_empty(folder)

    def delete_unfinished(self, prefix: str) -> None:
        for here, folder, files in list(self._walk(prefix)):
            for file in files:
                match = TEMPORARY.match(file)
                if match and (here + match["name"]).startswith(prefix):
                    with self._translated_errors(folder), suppress(FileNotFoundError):
                        (folder / file).unlink()
            if here.startswith(prefix):
                self._remove_empty(folder)

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        assert all(part and part[0] != "." for part in parts), f"not the name of an object: {name!r}"
        return self.root.joinpath(*parts)

    def _write(self, path: Path, data: bytes | memoryview, if_absent: bool) -> None:
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            fill(temporary, data)
            if not if_absent:
                os.replace(temporary, path)
            elif not link_if_absent(temporary, path, data) and not _holds(path, data):
                raise ExistsError(f"{path}: another process wrote it first")
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        for folder in (path.parent, *path.parent.parents):
            # All of them: the process that created a folder may have been killed before the folder was on the disk.
            sync(folder)
            if folder == self.root:
                break

    def _walk(self, prefix: str) -> Iterator[tuple[str, Path, list[str]]]:
        """Each folder that may hold names with this prefix: its name with `/`, its path, its files."""

        def on_error(error: OSError) -> None:
            # Another process may delete a folder while this one lists it.
            if not isinstance(error, FileNotFoundError):
                raise error

        start = self.root / prefix.rpartition("/")[0]
        with self._translated_errors(start):
            for folder, folders, files in os.walk(start, onerror=on_error):
                inside = Path(folder).relative_to(self.root).as_posix()
                here = "" if inside == "." else f"{inside}/"
                below = ((name, f"{here}{name}/") for name in folders if name[0] != ".")
                folders[:] = [name for name, at in below if at.startswith(prefix) or prefix.startswith(at)]
                yield here, Path(folder), files

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or already deleted by another process
                return
            folder = folder.parent

    @contextmanager
    def _translated_errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise error_of_file(error, path, self.root) from error


def _holds(path: Path, data: bytes | memoryview) -> bool:
    return path.stat().st_size == len(data) and read_file(path, len(data)) == data
