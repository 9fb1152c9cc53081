"""Open a storage for a job: check that it belongs to the job, find the start, and reserve an attempt's number."""

import logging
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from tailorpo_trainer.checkpoint import identity, resume
from tailorpo_trainer.checkpoint.attempt import Attempt
from tailorpo_trainer.checkpoint.format import AttemptRecord, Parent, RunRecord
from tailorpo_trainer.checkpoint.layout import RUN, Ref, attempt_name, inventory
from tailorpo_trainer.checkpoint.storage.base import ExistsError, MissingError, Store
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.versions import now, software

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A storage that is known to belong to this job and this experiment."""

    store: Store
    record: RunRecord
    iterations: int

    def latest(self, unfit: Collection[Ref] = ()) -> resume.Loaded | None:
        """The checkpoint to resume from, or None if there is none; at step `iterations` the run is finished.

        unfit: those that could not be restored. Raises `ConfigurationError` if more iterations are done than the
        document asks for, `DataError` if there are checkpoints and none is valid.
        """
        found = resume.latest(self.store, self.record.experiment, unfit)
        if found is not None and found.step > self.iterations:
            raise ConfigurationError(
                f"spec.training.iterations: {self.iterations}, but {found.step} are done already "
                f"({found.uri}) and they may only grow: set at least {found.step}, or give another storage "
                "(--output, or spec.checkpoint.storage)"
            )
        return found

    def begin(self, start: resume.Loaded | None, *, at_least: int = 1) -> Attempt:
        """Reserve the next attempt's number. It resumes from `start`; None for a new run or `--fresh`.

        `at_least` is the operator's own count. The storage may have a higher number, for example if a job was deleted
        and applied again: then the number is one more than the newest here. No two writers ever share a prefix.
        """
        newest = max(inventory(self.store.names("attempt-")).attempts, default=0)
        number = max(newest + 1, at_least)
        parent = None if start is None else Parent(attempt=start.attempt, step=start.step)
        while True:
            record = AttemptRecord(
                time=now(), experiment=self.record.experiment, versions=software(),
                attempt=number, parent=parent, token=secrets.token_hex(16),
            )  # fmt: skip
            try:
                self.store.write(attempt_name(number), record.encode(), if_absent=True)
                break
            except ExistsError:
                number += 1
        if start is not None and start.manifest.versions != software():
            changed = identity.differences(start.manifest.versions, software(), "versions")
            text = "; ".join(map(str, changed))
            logger.warning("the run resumes with other software versions, so its last bits may differ: %s", text)
        return Attempt(self.store, self.record.experiment, number, None if start is None else start.manifest)


def open_run(store: Store, job: TailorPOJob) -> Run:
    """Take an empty storage for this job, or check that it belongs to it; otherwise nothing is written.

    Raises `ConfigurationError` with each field that differs, both values and what to do.
    """
    defines = identity.defining(job.spec)
    mine = RunRecord(
        time=now(), experiment=identity.hash_of(defines), versions=software(),
        name=job.metadata.name, namespace=job.metadata.namespace, defines=defines,
    )  # fmt: skip
    stored = _read(store)
    if stored is None:
        if inventory(store.names("attempt-")).attempts:
            raise ConfigurationError(
                f"{store.uri(RUN)}: is missing, so nobody can tell whose checkpoints these are: bring it "
                "back, or give another storage (--output, or spec.checkpoint.storage)"
            )
        try:
            store.write(RUN, mine.encode(), if_absent=True)
        except ExistsError:
            stored = _read(store)  # another process was first: compare with its record
    if stored is not None:
        identity.check(stored, mine, store.uri(""))
    return Run(store, stored or mine, job.spec.training.iterations)


def _read(store: Store) -> RunRecord | None:
    try:
        return RunRecord.decode(store.read(RUN), store.uri(RUN))
    except MissingError:
        return None
