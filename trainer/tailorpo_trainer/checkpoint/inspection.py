"""The contents of a storage for users: every step of every attempt, and whether it is valid. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tailorpo_trainer.checkpoint.format import CorruptError, Manifest
from tailorpo_trainer.checkpoint.layout import RUN, Ref, inventory
from tailorpo_trainer.checkpoint.resume import candidates, check, read_manifest
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store
from tailorpo_trainer.errors import ConfigurationError


@dataclass(frozen=True)
class Row:
    """One step of one attempt, complete or not.

    size: bytes of all objects. evaluation: the held-out reward at this step. complete: all objects exist with the right
    sizes (their bytes were not read). resume: whether a run would resume from here. problem: why it is not complete.
    """

    attempt: int
    step: int
    uri: str
    time: str | None = None
    size: int | None = None
    evaluation: float | None = None
    complete: bool = True
    resume: bool = False
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def require(store: Store) -> None:
    """Raise `ConfigurationError` if this storage does not belong to any run."""
    try:
        store.size(RUN)
    except MissingError:
        raise ConfigurationError(f"{store.uri('')}: holds no checkpoints of a run: it has no {RUN}") from None


def list_steps(store: Store) -> list[Row]:
    """All steps, oldest first. Reads the manifests and asks for the sizes of their objects."""
    found = inventory(store.names("attempt-"))
    rows = {ref: _row(store, ref, ref.manifest in names) for ref, names in sorted(found.steps.items())}
    for ref in candidates(store, found):
        if rows[ref].complete:
            rows[ref] = Row(**rows[ref].as_dict() | {"resume": True})
            break
    return list(rows.values())


def verify(store: Store, ref: Ref) -> Iterator[str]:
    """Read every byte of a committed checkpoint; one sentence for each object that is wrong."""
    try:
        manifest = read_manifest(store, ref)
    except (CorruptError, MissingError) as error:
        yield str(error)
        return
    for name, entry in manifest.objects.items():
        try:
            check(store, ref, name, entry)
        except CorruptError as error:
            yield str(error)


def _row(store: Store, ref: Ref, committed: bool) -> Row:
    uri = store.uri(ref.prefix)
    if not committed:
        return Row(ref.attempt, ref.step, uri, complete=False, problem="has no manifest, so it does not exist")
    try:
        manifest = read_manifest(store, ref)
    except (CorruptError, MissingError) as error:
        return Row(ref.attempt, ref.step, uri, complete=False, problem=str(error))
    problem = next(_sizes(store, ref, manifest), None)
    return Row(
        ref.attempt, ref.step, uri, manifest.time, manifest.size, manifest.evaluation, problem is None, problem=problem
    )


def _sizes(store: Store, ref: Ref, manifest: Manifest) -> Iterator[str]:
    for name, entry in manifest.objects.items():
        try:
            size = store.size(ref.prefix + name)
        except MissingError as error:
            yield str(error)
            continue
        if size != entry.size:
            yield f"{store.uri(ref.prefix + name)}: has {size} bytes instead of {entry.size}"
