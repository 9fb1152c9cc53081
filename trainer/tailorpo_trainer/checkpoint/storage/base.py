"""Where checkpoints are kept: named objects, each written whole or not at all."""

from collections.abc import Iterable
from typing import Protocol

from tailorpo_trainer.errors import TailorPOError


class MissingError(TailorPOError):
    """There is no object of this name (any more)."""


class ExistsError(TailorPOError):
    """Another writer was first: the name already holds other bytes."""


class Store(Protocol):
    """Flat names with `/` in them, as S3 has; no folders, no renames, nothing half written.

    Every method may raise `ConfigurationError` (no permission, no such place), `ResourceError` (full) or
    `UnavailableError` (does not answer). No method keeps state, so several threads may share a store.
    """

    def write(self, name: str, data: bytes | memoryview, *, if_absent: bool = False) -> None:
        """Put an object; when this returns it survives a power cut.

        With `if_absent`, of two writers one gets `ExistsError`. Finding the very same bytes is a success: it
        may be our own retry after a lost answer. So whoever claims a name must write something unique.
        """

    def read(self, name: str) -> bytes:
        """The bytes of an object; `MissingError`."""

    def size(self, name: str) -> int:
        """How many bytes an object has; `MissingError`."""

    def names(self, prefix: str) -> list[str]:
        """All objects whose name begins so, sorted; unfinished ones are not among them."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, in no certain order, for good when this returns; missing ones are fine."""

    def sweep(self, prefix: str) -> None:
        """Remove what writers that died left unfinished under a prefix.

        A writer that is still alive there must begin its object again, which `write` does by itself.
        """

    def uri(self, name: str) -> str:
        """Where a person finds an object."""
