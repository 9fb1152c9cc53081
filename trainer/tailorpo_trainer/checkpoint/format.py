"""The three JSON records of a storage. No torch, no I/O.

Readers accept their own format version and older ones, and ignore keys that they do not know.
"""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tailorpo_trainer.checkpoint.layout import Ref
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.untrusted import parse_json
from tailorpo_trainer.versions import installed

FORMAT_VERSION = 1
RECORD_BYTES = 1 << 20
"""Most bytes of a record; those that are written have some hundred for each object."""


class CorruptError(DataError):
    """An object is incomplete, missing or differs from its manifest; the message begins with its location."""


class OversizedError(CorruptError):
    """An object is larger than anything that may stand there; not a byte of it was kept."""

    def __init__(self, uri: str, size: int, most: int) -> None:
        super().__init__(f"{uri}: has {size} bytes, at most {most} are read")
        self.size = size


class Record(BaseModel):
    """A JSON file with the format version that wrote it."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    format_version: int = FORMAT_VERSION
    time: str
    experiment: str
    versions: dict[str, str]

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, where: str) -> Self:
        """Raises `ConfigurationError` if a newer tailorpo wrote it, `CorruptError` if it cannot be read."""
        try:
            content = parse_json(data)
        except ValueError:
            raise CorruptError(f"{where}: is not JSON") from None
        version = content.get("formatVersion") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ConfigurationError(
                f"{where}: has checkpoint format version {version}, and this tailorpo ({installed('tailorpo')}) "
                f"reads versions up to {FORMAT_VERSION}: use the newer tailorpo that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CorruptError(f"{where}: {field or 'content'}: {first['msg'].lower()}") from None


class RunRecord(Record):
    """`run.json`: the job that owns the storage. `experiment` is the hash of the fields in `defines`."""

    name: str
    namespace: str | None
    defines: dict[str, Any]


class Parent(BaseModel):
    """The checkpoint that an attempt resumed from."""

    attempt: int
    step: int


class AttemptRecord(Record):
    """`attempt-NNNN/attempt.json`: reserves the number. `parent` is null if the attempt resumed from no checkpoint."""

    attempt: int
    parent: Parent | None
    # Two records of one number must differ, or `write(if_absent=True)` would take one for a retry of the other.
    token: str


class Entry(BaseModel):
    """Size and hash that an object must have to be valid."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Record):
    """`manifest.json`, written last: with it the checkpoint exists. Names of objects are relative to its prefix."""

    attempt: int
    step: int
    objects: dict[str, Entry]
    # The weighted held-out reward measured at this step, or None. Manifests of early versions do not have it.
    evaluation: float | None = Field(None, allow_inf_nan=False)

    @property
    def ref(self) -> Ref:
        return Ref(self.attempt, self.step)

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(entry.size for entry in self.objects.values())


def digest(data: bytes | memoryview) -> Entry:
    return Entry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
