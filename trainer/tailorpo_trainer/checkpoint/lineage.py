"""Which attempt resumed from which checkpoint."""

from collections.abc import Iterator

from tailorpo_trainer.checkpoint.format import AttemptRecord, CorruptError, Parent
from tailorpo_trainer.checkpoint.layout import Ref, attempt_name
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store


def parent(store: Store, attempt: int) -> Parent | None:
    """The checkpoint that an attempt resumed from, or None. Raises `MissingError` or `CorruptError`."""
    name = attempt_name(attempt)
    return AttemptRecord.decode(store.read(name), store.uri(name)).parent


def ancestors(store: Store, ref: Ref) -> Iterator[Ref]:
    """This checkpoint, the one that its attempt resumed from, and so on, up to an attempt that has no parent or whose
    record cannot be read."""
    while True:
        yield ref
        try:
            before = parent(store, ref.attempt)
        except (MissingError, CorruptError):
            return
        if before is None or before.attempt >= ref.attempt:
            return
        ref = Ref(before.attempt, before.step)
