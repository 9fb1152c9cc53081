"""Which old checkpoint is worth keeping besides the newest: the one that was measured best."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tailorpo_trainer.checkpoint.format import CorruptError, Manifest
from tailorpo_trainer.checkpoint.layout import Ref
from tailorpo_trainer.checkpoint.lineage import descent
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store


@dataclass
class Evaluations:
    """The evaluations of a storage's checkpoints; each manifest is read once, and so is the attempts' descent."""

    _known: dict[Ref, float | None] = field(default_factory=dict)
    _origin: int | None = None

    def best(self, store: Store, committed: Sequence[Ref], attempt: int, start: Manifest | None) -> Ref | None:
        """The checkpoint with the greatest evaluation, of equal ones the newest; None if none was measured.

        Those from before the last `--fresh` do not count: they were given up. `attempt` and its `start` say which
        those are.
        """
        if self._origin is None:
            self._origin = attempt if start is None else min(ref.attempt for ref in descent(store, start.ref))
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
