"""Which old checkpoint is kept besides the newest ones: the one with the best evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tailorpo_trainer.checkpoint.format import CorruptError, Manifest
from tailorpo_trainer.checkpoint.layout import Ref
from tailorpo_trainer.checkpoint.lineage import ancestors
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store


@dataclass
class Evaluations:
    """The evaluations of a storage's checkpoints. Each manifest is read once, and so are the attempts' ancestors."""

    _known: dict[Ref, float | None] = field(default_factory=dict)
    _origin: int | None = None

    def best(self, store: Store, committed: Sequence[Ref], attempt: int, start: Manifest | None) -> Ref | None:
        """The checkpoint with the greatest evaluation, of equal ones the newest; None if none was evaluated.

        Checkpoints from before the last `--fresh` do not count: the ancestors of `start` show where that was.
        """
        if self._origin is None:
            self._origin = attempt if start is None else min(ref.attempt for ref in ancestors(store, start.ref))
        for ref in committed:
            if ref.attempt >= self._origin and ref not in self._known:
                self._known[ref] = _evaluation(store, ref)
        found = [(value, ref) for ref in committed if (value := self._known.get(ref)) is not None]
        return max(found)[1] if found else None


def _evaluation(store: Store, ref: Ref) -> float | None:
    try:
        return Manifest.decode(store.read(ref.manifest), store.uri(ref.manifest)).evaluation
    except (MissingError, CorruptError):
        return None
