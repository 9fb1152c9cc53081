"""Find and load the checkpoint to resume from; every byte is checked before it is used."""

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailorpo_trainer.checkpoint.format import CorruptError, Entry, Manifest, OversizedError, digest
from tailorpo_trainer.checkpoint.layout import OBJECT, STATE, TENSORS, Inventory, Ref, inventory
from tailorpo_trainer.checkpoint.lineage import parent
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store
from tailorpo_trainer.errors import DataError, UnavailableError
from tailorpo_trainer.untrusted import parse_json

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MAX_LISTINGS = 10


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory. All its objects have the size and the hash in its manifest."""

    manifest: Manifest
    uri: str
    state: dict[str, Any]
    objects: dict[str, bytes] = field(repr=False)

    @property
    def attempt(self) -> int:
        return self.manifest.attempt

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def groups(self) -> list[str]:
        return [name.removesuffix(TENSORS) for name in self.objects if name.endswith(TENSORS)]

    def tensors(self, group: str) -> dict[str, "Tensor"]:
        """A group's tensors, on the CPU; `CorruptError` if the checkpoint has no such group."""
        from tailorpo_trainer.checkpoint import tensors

        name = group + TENSORS
        if name not in self.objects:
            raise CorruptError(f"{self.uri}: has no {name}, only {', '.join(sorted(self.objects))}")
        return tensors.unpack(self.objects[name], self.uri + name)


def checkpoints(store: Store) -> list[Ref]:
    """All committed checkpoints, oldest first, from names alone."""
    return inventory(store.names("attempt-")).committed()


def load(store: Store, ref: Ref) -> Loaded:
    """One checkpoint, verified.

    Raises `CorruptError` naming the object that is wrong, `MissingError` if the checkpoint does not exist (any more),
    `ConfigurationError` if a newer tailorpo wrote it.
    """
    manifest = read_manifest(store, ref)
    objects = {name: check(store, ref, name, entry) for name, entry in manifest.objects.items()}
    try:
        state = parse_json(objects[STATE])
    except (KeyError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise CorruptError(f"{store.uri(ref.prefix + STATE)}: is missing or not a JSON object")
    return Loaded(manifest, store.uri(ref.prefix), state, objects)


def read_manifest(store: Store, ref: Ref) -> Manifest:
    """The manifest of a checkpoint; raises as `load` does."""
    manifest = Manifest.decode(store.read(ref.manifest), store.uri(ref.manifest))
    if manifest.ref != ref:
        raise CorruptError(f"{store.uri(ref.manifest)}: belongs to {manifest.ref.prefix}")
    return manifest


def check(store: Store, ref: Ref, name: str, entry: Entry) -> bytes:
    """The bytes of an object, verified against its entry in the manifest; raises as `load` does."""
    where = store.uri(ref.prefix + name)
    if not OBJECT.match(name):  # it could lead out of the storage
        raise CorruptError(f"{store.uri(ref.manifest)}: {name!r} cannot be the name of an object")
    try:
        data = store.read(ref.prefix + name, entry.size)
    except OversizedError as error:
        raise CorruptError(f"{where}: has {error.size} bytes instead of {entry.size}") from None
    except MissingError:
        # Deleting begins with the manifest. If that is missing too, the whole checkpoint was deleted.
        store.size(ref.manifest)
        raise CorruptError(f"{where}: is missing") from None
    if len(data) != entry.size:
        raise CorruptError(f"{where}: has {len(data)} bytes instead of {entry.size}")
    if digest(data) != entry:
        raise CorruptError(f"{where}: its SHA-256 is not the manifest's: the content changed")
    return data


def candidates(store: Store, found: Inventory) -> Iterator[Ref]:
    """Committed checkpoints in the order in which a resume tries them."""
    committed = found.committed()
    for number in sorted(found.attempts, reverse=True):
        yield from sorted((ref for ref in committed if ref.attempt == number), reverse=True)
        if _began_from_nothing(store, number):
            return


def latest(store: Store, experiment: str | None = None, unfit: Collection[Ref] = ()) -> Loaded | None:
    """The checkpoint to resume from, or None if none was ever committed since the last `--fresh`.

    It is the newest valid step of the newest attempt that has one; invalid ones are skipped with a warning. Attempts
    before the last one that started without a checkpoint are not tried: `--fresh` gave them up. With `experiment`,
    checkpoints of another hash are skipped as well. unfit: those that could not be restored, although they are whole.

    Raises `DataError` if there are checkpoints and not one is valid: to begin again would silently lose their work.
    """
    for _ in range(MAX_LISTINGS):
        try:
            return _latest(store, experiment, unfit)
        except MissingError:
            # Deleted by another process that is still alive: list again, because a newer one exists now.
            continue
    raise UnavailableError(
        f"{store.uri('')}: checkpoints vanish while they are read: is another process deleting them?"
    )


def _latest(store: Store, experiment: str | None, unfit: Collection[Ref]) -> Loaded | None:
    problems = [f"{store.uri(ref.prefix)}: does not fit" for ref in unfit]
    for ref in candidates(store, inventory(store.names("attempt-"))):
        if ref in unfit:
            continue
        try:
            loaded = load(store, ref)
        except CorruptError as error:
            logger.warning("checkpoint skipped: %s", error)
            problems.append(str(error))
            continue
        if experiment in (None, loaded.manifest.experiment):
            return loaded
        logger.warning("checkpoint skipped: %s: is of another experiment", store.uri(ref.manifest))
    if problems:
        raise DataError(
            f"{store.uri('')}: no checkpoint there is valid, the newest because: {problems[0]}: bring one back, or "
            "begin from nothing with --fresh"
        )
    return None


def _began_from_nothing(store: Store, number: int) -> bool:
    try:
        return parent(store, number) is None
    except (MissingError, CorruptError) as error:
        logger.warning("this attempt is assumed to have resumed from an older one: %s", error)
        return False
