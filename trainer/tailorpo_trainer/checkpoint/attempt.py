"""Write checkpoints: copy a state, commit it, delete old checkpoints."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailorpo_trainer.checkpoint.format import Entry, Manifest, digest
from tailorpo_trainer.checkpoint.layout import OBJECT, RUN, STATE, TENSORS, Ref, attempt_name, attempt_number, inventory
from tailorpo_trainer.checkpoint.retention import Evaluations
from tailorpo_trainer.checkpoint.storage.base import MissingError, Store
from tailorpo_trainer.versions import now, software

if TYPE_CHECKING:
    from torch import Tensor

Groups = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state at one moment. It shares no memory with the live state, so it can be written later."""

    step: int
    time: str
    objects: dict[str, bytes | memoryview] = field(repr=False)
    evaluation: float | None = None


def capture(step: int, groups: Groups, state: Mapping[str, Any], evaluation: float | None = None) -> Snapshot:
    """Copy tensors to files in host memory and the state to JSON: training waits for this only.

    `evaluation`: the weighted held-out reward measured at this step, or None. Raises `ValueError` for a state that
    JSON would change: NaN, tuples, keys that are not text.
    """
    from tailorpo_trainer.checkpoint.tensors import pack

    assert all(OBJECT.match(name) for name in groups), f"not names of objects: {list(groups)}"
    text = json.dumps(state, indent=2, allow_nan=False)
    if json.loads(text) != state:
        raise ValueError(f"the state must be plain JSON, with lists and text keys only: {text[:200]}")
    objects: dict[str, bytes | memoryview] = {name + TENSORS: pack(tensors) for name, tensors in groups.items()}
    return Snapshot(step, now(), objects | {STATE: text.encode()}, evaluation)


@dataclass
class Attempt:
    """One attempt of a run, the only writer below its prefix. Not thread-safe.

    `start` is the manifest of the checkpoint that it resumed from, or None if it started without one.
    """

    store: Store
    experiment: str
    number: int
    start: Manifest | None
    _newest: Manifest | None = None
    _unfinished: int | None = None
    _unfinished_deleted: bool = False
    _evaluations: Evaluations = field(default_factory=Evaluations)

    def successor(self) -> int | None:
        """The number of the newest later attempt, which owns the storage now; None if this one still does."""
        numbers = (attempt_number(folder) for folder in self.store.folders("attempt-"))
        for number in sorted((number for number in numbers if number and number > self.number), reverse=True):
            try:
                self.store.size(attempt_name(number))  # a folder alone is no claim
                return number
            except MissingError:
                continue
        return None

    def save(self, step: int, groups: Groups, state: Mapping[str, Any]) -> Manifest:
        """Commit a checkpoint: `capture`, then `commit`."""
        return self.commit(capture(step, groups, state))

    def commit(self, snapshot: Snapshot) -> Manifest:
        """Write objects, then the manifest; when this returns the checkpoint survives any crash.

        A step that is committed already, by this attempt or as its start, is not written again. A call that failed may
        be repeated. Raises `ValueError` for a step before the newest one, and the errors of the store.
        """
        newest = self._newest or self.start
        if newest and snapshot.step <= newest.step:
            if snapshot.step < newest.step:
                raise ValueError(f"step {snapshot.step} comes before the committed step {newest.step}")
            return newest
        ref = Ref(self.number, snapshot.step)
        if self._unfinished == snapshot.step:
            # The manifest may exist although its write failed. Objects that a manifest names must not change.
            self.store.delete([ref.manifest])
        self._unfinished = snapshot.step
        entries = {name: self._write(ref.prefix + name, data) for name, data in snapshot.objects.items()}
        manifest = Manifest(
            time=snapshot.time, experiment=self.experiment, versions=software(),
            attempt=self.number, step=snapshot.step, objects=entries, evaluation=snapshot.evaluation,
        )  # fmt: skip
        self.store.write(ref.manifest, manifest.encode(), if_absent=True)
        self._newest, self._unfinished = manifest, None
        return manifest

    def _write(self, name: str, data: bytes | memoryview) -> Entry:
        """Write an object and hash it at the same time: neither holds the GIL for long."""
        with ThreadPoolExecutor(1) as executor:
            entry = executor.submit(digest, data)
            self.store.write(name, data)
            return entry.result()

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep` and the best, and the unfinished files of interrupted writers.

        Does nothing before the first commit: until then an older checkpoint is the only one known to be good.
        Does nothing if a newer attempt exists: then this process should have ended. Never deletes anything newer than
        the last commit. Manifests are deleted before their objects, so that no checkpoint is ever half deleted.
        """
        assert keep >= 1
        stored = inventory(self.store.names("attempt-"))
        if self._newest is None or max(stored.attempts, default=0) > self.number:
            return
        committed, newest = stored.committed(), self._newest.ref
        best = self._evaluations.best(self.store, committed, self.number, self.start)
        kept = {*committed[-keep:], *([best] if best else [])}
        obsolete = {ref: names for ref, names in stored.steps.items() if ref < newest and ref not in kept}
        if obsolete:
            self.store.delete([ref.manifest for ref in obsolete])
            self.store.delete([name for names in obsolete.values() for name in names])
        if not self._unfinished_deleted:
            for number in stored.attempts:
                self.store.delete_unfinished(f"attempt-{number:04d}/")
            self.store.delete_unfinished(RUN)
            self._unfinished_deleted = True
