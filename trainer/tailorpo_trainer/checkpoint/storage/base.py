"""The interface of a store: named objects, each written completely or not at all."""

from collections.abc import Iterable
from typing import Protocol

from tailorpo_trainer.checkpoint.format import RECORD_BYTES
from tailorpo_trainer.errors import TailorPOError


class MissingError(TailorPOError):
    """No object has this name (any more)."""


class ExistsError(TailorPOError):
    """Another writer was first: the object exists already, with other bytes."""


class Store(Protocol):
    """Objects with flat names that may contain `/`, as in S3: no folders, no renames, no partial writes.

    Every method may raise `ConfigurationError` (no permission, no such place), `ResourceError` (full) or
    `UnavailableError` (does not answer). No method keeps state, so several threads may share a store.
    """

    def write(self, name: str, data: bytes | memoryview, *, if_absent: bool = False) -> None:
        """Write an object; when this returns, it survives a power cut.

        With `if_absent`, one of two writers gets `ExistsError`. An object with the same bytes counts as success: it may
        come from an earlier try whose answer was lost. So writers that compete must write unique bytes.
        """

    def read(self, name: str, most: int = RECORD_BYTES) -> bytes:
        """The bytes of an object; raises `MissingError`, and `OversizedError` if there are more than `most`."""

    def size(self, name: str) -> int:
        """The size of an object in bytes; raises `MissingError`."""

    def names(self, prefix: str) -> list[str]:
        """The names of all complete objects with this prefix, sorted."""

    def folders(self, prefix: str) -> list[str]:
        """The first parts of all names with this prefix that have a `/`, sorted: cheaper than `names`."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in any order, durably when this returns; missing ones are ignored."""

    def delete_unfinished(self, prefix: str) -> None:
        """Delete unfinished objects under a prefix, which writers that died left behind.

        If a writer is still alive there, its `write` starts the object again.
        """

    def uri(self, name: str) -> str:
        """The address of an object, for messages."""
