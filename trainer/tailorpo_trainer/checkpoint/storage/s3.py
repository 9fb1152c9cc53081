"""A store under a prefix of an S3 bucket: single puts, multipart uploads above a threshold, `If-None-Match`."""

import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from tailorpo_trainer import s3
from tailorpo_trainer.checkpoint.format import RECORD_BYTES, CorruptError, OversizedError
from tailorpo_trainer.checkpoint.storage.base import ExistsError, MissingError
from tailorpo_trainer.errors import ConfigurationError, ResourceError, UnavailableError

PART_BYTES, CONCURRENT_PARTS = 16 << 20, 4
"""Size of one part of a multipart upload and of the smallest object uploaded so; parts sent at the same time.

Fewer and larger parts than boto3's defaults (ten of 8 MiB) leave more CPU time to training."""

PAGE = 1000
"""Objects that one request may delete."""

TRIES, PAUSE_SECONDS = 4, 0.2

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class S3Store:
    """Objects are keys below `s3://bucket/prefix/`. The server must honour `If-None-Match: *` on a put.

    botocore tries each request up to three times. Here, further cases are retried: an answer that is incomplete, a
    conflict of two conditional puts, an upload that another process deleted, and a request that is refused for its
    checksums, without them.
    """

    def __init__(self, uri: str, settings: s3.Settings = s3.STANDARD) -> None:
        self.subject = f"checkpoint storage {uri}"
        self.bucket, prefix = s3.split(uri, self.subject)
        self.prefix = f"{prefix}/" if prefix else ""
        self.client, self.settings = s3.connect(self.subject, settings), settings
        self._single_deletes = False
        self._conditional: bool | None = None  # whether the server honours `If-None-Match`, once that is known
        key = settings.sse_kms_key_id
        self.extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def write(self, name: str, data: bytes | memoryview, *, if_absent: bool = False) -> None:
        with self._translated_errors(name, writing=True):
            if if_absent:
                self._put_if_absent(name, data)
            elif len(data) < PART_BYTES:
                self._put(name, data)
            else:
                # Another process that takes this one for dead may delete the upload: then it starts again.
                self._or_without_checksums(lambda: _retry(lambda: self._upload(name, data), _is("NoSuchUpload")))

    def read(self, name: str, most: int = RECORD_BYTES) -> bytes:
        with self._translated_errors(name):
            try:
                return _retry(lambda: self._get(name, most), _is_incomplete_answer)
            except _client_error() as error:
                raise self._missing(name, error) from None
            except _checksum_error() as error:
                raise CorruptError(f"{self.uri(name)}: is not what was stored: {error}") from None

    def size(self, name: str) -> int:
        with self._translated_errors(name):
            try:
                return int(self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)["ContentLength"])
            except _client_error() as error:
                raise self._missing(name, error) from None

    def names(self, prefix: str) -> list[str]:
        with self._translated_errors(prefix):
            found = [item["Key"] for item in self._pages("list_objects_v2", "Contents", prefix)]
        return sorted(key.removeprefix(self.prefix) for key in found)

    def folders(self, prefix: str) -> list[str]:
        with self._translated_errors(prefix):
            found = [item["Prefix"] for item in self._pages("list_objects_v2", "CommonPrefixes", prefix, Delimiter="/")]
        return sorted(each.removeprefix(self.prefix).rstrip("/") for each in found)

    def delete(self, names: Iterable[str]) -> None:
        wanted = list(names)
        for some in (wanted[start : start + PAGE] for start in range(0, len(wanted), PAGE)):
            with self._translated_errors(some[0], writing=True):
                self._delete(some)

    def _delete(self, names: list[str]) -> None:
        """Delete at most `PAGE` objects, one by one where the server refuses to delete several at once.

        That request must have a checksum or an MD5, and botocore sends the former.
        """
        if not self._single_deletes:
            objects = {"Objects": [{"Key": self.prefix + name} for name in names], "Quiet": True}
            try:
                answer = self.client.delete_objects(Bucket=self.bucket, Delete=objects)
            except _client_error() as error:
                if not _refuses_many(error):
                    raise
            else:
                for failed in answer.get("Errors", []):  # the request may succeed although single objects fail
                    status = {"HTTPStatusCode": 403 if failed.get("Code") == "AccessDenied" else 500}
                    raise _client_error()({"Error": failed, "ResponseMetadata": status}, "DeleteObjects")
                return
        for name in names:
            try:
                self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name)
            except _client_error() as error:
                if not _is("NoSuchKey", "404")(error):  # Amazon's own answers as if it had been there
                    raise
        self._single_deletes = True

    def delete_unfinished(self, prefix: str) -> None:
        with self._translated_errors(prefix, writing=True):
            for upload in list(self._pages("list_multipart_uploads", "Uploads", prefix)):
                try:
                    self.client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                except _client_error() as error:
                    if not _is("NoSuchUpload")(error):  # completed or aborted meanwhile
                        raise

    def uri(self, name: str) -> str:
        return f"{s3.SCHEME}{self.bucket}/{self.prefix}{name}"

    def _put(self, name: str, data: bytes | memoryview, **condition: str) -> None:
        def put() -> None:
            self.client.put_object(
                Bucket=self.bucket, Key=self.prefix + name, Body=bytes(data), **condition, **self.extra
            )

        self._or_without_checksums(put)

    def _or_without_checksums(self, action: Callable[[], None]) -> None:
        """Send a request again without checksums if that may be why it was refused; if it was, send no more of them."""
        client = self.client
        try:
            return action()
        except _client_error() as error:
            if self.settings.checksums is not None or not s3.sends_checksums(client):
                raise
            if not s3.refuses_checksums(error):
                raise
            settings = replace(self.settings, checksums="when_required")
            self.client = s3.connect(self.subject, settings)
            try:
                action()
            except _client_error() as second:
                self.client = client
                raise (second if _is("PreconditionFailed", "ConditionalRequestConflict")(second) else error) from None
            logger.warning(
                "%s: the server refuses requests with checksums (%s), so they are sent without: "
                "spec.checkpoint.checksums, or AWS_REQUEST_CHECKSUM_CALCULATION, may say when_required from the start",
                self.subject, error.response.get("Error", {}).get("Code"),
            )  # fmt: skip

    def _upload(self, name: str, data: bytes | memoryview) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=CONCURRENT_PARTS
        )
        config.max_in_memory_upload_chunks = CONCURRENT_PARTS
        self.client.upload_fileobj(
            _Reader(memoryview(data)), self.bucket, self.prefix + name, ExtraArgs=self.extra, Config=config
        )

    def _put_if_absent(self, name: str, data: bytes | memoryview) -> None:
        """Put an object that must not exist yet; an earlier put of ours whose answer was lost counts as success."""
        try:
            _retry(lambda: self._put(name, data, IfNoneMatch="*"), _is("ConditionalRequestConflict"))
        except _client_error() as error:
            if not _is("PreconditionFailed", "ConditionalRequestConflict")(error):
                raise
            self._conditional = True
            if self.size(name) != len(data) or self.read(name, len(data)) != data:
                raise ExistsError(f"{self.uri(name)}: another process wrote it first") from None
        else:
            self._require_conditions(name, data)

    def _require_conditions(self, name: str, data: bytes | memoryview) -> None:
        """Put an object again that exists now, once: a server that honours the condition refuses.

        Raises `ConfigurationError` for one that does not: two runs could overwrite each other's records there.
        """
        if self._conditional is None:
            try:
                self._put(name, data, IfNoneMatch="*")
            except _client_error() as error:
                if not _is("PreconditionFailed", "ConditionalRequestConflict")(error):
                    raise
                self._conditional = True
            else:
                self._conditional = False
        if not self._conditional:
            raise ConfigurationError(
                f"{self.subject}: the server does not honour `If-None-Match: *`, so two runs could overwrite each "
                "other's checkpoints: use a server that does (Amazon S3, MinIO, Ceph, SeaweedFS in new versions), or "
                "a folder"
            )

    def _get(self, name: str, most: int) -> bytes:
        def too_large(size: int) -> OversizedError:
            return OversizedError(self.uri(name), size, most)

        return s3.body(self.client, self.bucket, self.prefix + name, too_large, most)

    def _missing(self, name: str, error: Any) -> Exception:
        """`MissingError` if the bucket exists but the object does not, otherwise the error itself."""
        # The answer to HEAD has no body, so it does not show which of the two is missing.
        return MissingError(f"{self.uri(name)}: is missing") if _is("NoSuchKey", "404")(error) else error

    def _pages(self, operation: str, key: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator(operation).paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix, **options
        )
        for page in pages:
            yield from page.get(key, [])

    @contextmanager
    def _translated_errors(self, name: str, *, writing: bool = False) -> Iterator[None]:
        try:
            with s3.translated_errors(self.subject, self.client, self.settings, writing=writing):
                yield
        except (ResourceError, UnavailableError) as error:
            raise type(error)(f"{error} ({name})") from None


class _Reader(io.RawIOBase):
    """A file in memory that copies only the parts being sent; `BytesIO` would copy everything."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def read(self, count: int = -1) -> bytes:
        start, self.at = self.at, len(self.data) if count < 0 else min(self.at + count, len(self.data))
        return bytes(self.data[start : self.at])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: len(self.data)}[whence]
        return self.at

    def on_error(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _client_error() -> type[Any]:
    from botocore.exceptions import ClientError

    return ClientError


def _checksum_error() -> type[Any]:
    from botocore.exceptions import FlexibleChecksumError

    return FlexibleChecksumError


def _refuses_many(error: Any) -> bool:
    """Whether an answer to DeleteObjects may be that of a server that cannot do it, or not with a checksum."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return (status in (404, 405) and not _is("NoSuchBucket")(error)) or s3.refuses_checksums(error)


def _is(*codes: str) -> Callable[[Exception], bool]:
    """A test whether an error is an answer of the server with one of these codes."""
    return lambda error: isinstance(error, _client_error()) and error.response.get("Error", {}).get("Code") in codes


def _is_incomplete_answer(error: Exception) -> bool:
    """Whether an answer broke off or is damaged: botocore does not retry then."""
    from botocore import exceptions as boto

    return isinstance(error, boto.ResponseStreamingError | boto.IncompleteReadError | boto.FlexibleChecksumError)


def _retry(action: Callable[[], Result], again: Callable[[Exception], bool]) -> Result:
    """The result of `action`, which is tried a few times while `again` accepts its error."""
    for number in range(1, TRIES):
        try:
            return action()
        except Exception as error:
            if not again(error):
                raise
            time.sleep(PAUSE_SECONDS * 2**number)
    return action()
