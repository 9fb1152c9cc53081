"""Read from S3: the bytes of one object, or a copy of a prefix in the user's cache. No torch."""

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from tailorpo_trainer.errors import ConfigurationError, DataError, ResourceError, TailorPOError, UnavailableError
from tailorpo_trainer.s3.client import body, connect, split, translated_errors

INDEX = ".tailorpo-s3.json"
TEMPORARY = ".tailorpo-parts"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Object:
    """An object in a listing of S3; equal `etag` and `size` mean equal bytes."""

    key: str
    etag: str
    size: int


class Remote:
    """The object at an `s3://` URI, or all objects under that prefix; they are listed once.

    Every message begins with `subject`, the field of the document and its value. Raises `ConfigurationError` where a
    retry cannot help, `UnavailableError` if the store did not answer after botocore's retries.
    """

    def __init__(self, uri: str, subject: str) -> None:
        self.uri, self.subject = uri, subject
        self.bucket, self.key = split(uri, subject)
        self.client = connect(subject)
        with translated_errors(subject, self.client):
            self.objects, self.is_object = self._list()
        if not self.objects:
            raise ConfigurationError(f"{subject}: the bucket {self.bucket!r} holds nothing there: check the prefix")

    def _list(self) -> tuple[dict[str, Object], bool]:
        prefix = f"{self.key}/" if self.key else ""
        found = {item.key.removeprefix(prefix): item for item in self._listed(prefix) if not item.key.endswith("/")}
        if found or not self.key:
            return found, False
        # Keys are listed in order, so an object of just this name comes first.
        same = [item for item in self._listed(self.key, 1) if item.key == self.key]
        return {PurePosixPath(item.key).name: item for item in same}, True

    def _listed(self, prefix: str, limit: int | None = None) -> Iterator[Object]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, PaginationConfig={"MaxItems": limit}
        )
        for page in pages:
            for item in page.get("Contents", []):
                yield Object(item["Key"], item["ETag"].strip('"'), item["Size"])

    def copy(self, names: list[str]) -> Path:
        """Download those of these objects that changed. Returns the folder, or the file if the URI names one.

        A file gets its final name when it is complete. Processes that need the same prefix wait for one another.
        """
        folder = cache() / blake2b(self.uri.rstrip("/").encode(), digest_size=10).hexdigest()
        for name in names:
            if not _is_safe_name(name):
                raise DataError(f"{self.subject}: {name!r} is no name for a file")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                self._update(folder, names)
        except OSError as error:
            raise self._local_error(error, folder) from None
        return folder / next(iter(self.objects)) if self.is_object else folder

    def _update(self, folder: Path, names: list[str]) -> None:
        index = _read_index(folder)
        for name in index.keys() - self.objects.keys():  # deleted in S3: a stale file could be loaded
            if _is_safe_name(name):
                (folder / name).unlink(missing_ok=True)
            del index[name]
        changed = [name for name in names if not self._is_current(folder, name, index)]
        if not changed:
            return
        needed = sum(self.objects[name].size for name in changed)
        if needed > (free := shutil.disk_usage(folder).free):
            raise ResourceError(
                f"{self.subject}: {_megabytes(needed)} to download, and {folder} has {_megabytes(free)} left: "
                "make room, or set XDG_CACHE_HOME to a folder on a larger disk"
            )
        log.info("%s: downloading %d files, %s, to %s", self.uri, len(changed), _megabytes(needed), folder)
        progress = _Progress(self.uri, needed)
        for name in changed:
            self._download(name, folder, progress)
            index[name] = [self.objects[name].etag, self.objects[name].size]
            _write(folder / INDEX, json.dumps({"uri": self.uri, "files": index}, indent=1).encode())
        log.info("%s: downloaded", self.uri)

    def _is_current(self, folder: Path, name: str, index: dict[str, list[Any]]) -> bool:
        wanted = self.objects[name]
        try:
            return index.get(name) == [wanted.etag, wanted.size] and (folder / name).stat().st_size == wanted.size
        except OSError:
            return False

    def _download(self, name: str, folder: Path, progress: Callable[[int], None]) -> None:
        wanted = self.objects[name]
        temporary = folder / TEMPORARY / blake2b(name.encode(), digest_size=10).hexdigest()
        temporary.parent.mkdir(exist_ok=True)
        with translated_errors(self.subject, self.client):
            self.client.download_file(self.bucket, wanted.key, str(temporary), Callback=progress)
        if (size := temporary.stat().st_size) != wanted.size:
            raise UnavailableError(
                f"{self.subject}: {name} was replaced while it was read ({size} bytes instead of {wanted.size}): "
                "start again"
            )
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(folder / name)

    def _local_error(self, error: OSError, folder: Path) -> TailorPOError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(
                f"{self.subject}: no space is left in {folder}: make room, or set XDG_CACHE_HOME to another folder"
            )
        return ConfigurationError(
            f"{self.subject}: cannot be copied to {folder}: {error.strerror or error}: set XDG_CACHE_HOME to a folder "
            "that can be written"
        )


def read(uri: str, subject: str, most: int) -> bytes:
    """The bytes of one object; raises `DataError` if there are more than `most`."""
    bucket, key = split(uri, subject)
    if not key:
        raise ConfigurationError(f"{subject}: names a bucket: give s3://bucket/key")
    client = connect(subject)

    def too_large(size: int) -> DataError:
        return DataError(f"{subject}: has {size:,} bytes, and at most {most:,} are read")

    with translated_errors(subject, client):
        return body(client, bucket, key, too_large, most)


def cache() -> Path:
    """The folder of the copies: `$XDG_CACHE_HOME/tailorpo/models`, by default in `~/.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as required by the XDG specification
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise ConfigurationError("there is no home folder to keep models in: set XDG_CACHE_HOME") from None
    return base / "tailorpo" / "models"


def _is_safe_name(name: str) -> bool:
    """Whether a file of this name stays inside the folder and does not replace one of our own files."""
    parts = name.split("/")
    return not any(part in ("", ".", "..", INDEX, TEMPORARY) or "\0" in part for part in parts)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes of this machine; the lock ends with the process."""
    with (folder / ".tailorpo-lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network file system without locks; files are still replaced atomically
            yield
            return
        try:
            yield
        finally:
            shutil.rmtree(folder / TEMPORARY, ignore_errors=True)


def _read_index(folder: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((folder / INDEX).read_bytes())["files"])
    return {}


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


class _Progress:
    """Logs the progress of a download every 10 seconds; called from several threads."""

    def __init__(self, uri: str, total: int) -> None:
        self.uri, self.total, self.done, self.logged = uri, total, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        if (now := time.monotonic()) - self.logged >= 10:
            self.logged = now
            log.info("%s: %s of %s", self.uri, _megabytes(self.done), _megabytes(self.total))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
