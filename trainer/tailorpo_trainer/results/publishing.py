"""Copies of the results beside checkpoints in S3: `attempt-NNNN/output/…` in the storage."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from tailorpo_trainer import files, prompts
from tailorpo_trainer.checkpoint import MissingError, Ref, Store, layout
from tailorpo_trainer.checkpoint.lineage import ancestors
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.results.run_folder import RESULT_BYTES, RunFolder, parse_metrics
from tailorpo_trainer.untrusted import parse_json

logger = logging.getLogger(__name__)

SAMPLES = "samples/"


class Publisher:
    """Copies the files of a run folder below the prefix of one attempt, each file whenever it has changed.

    A picture is copied once, by the attempt that drew it; all other files are complete in the newest attempt.
    A file that cannot be copied is a warning only, since the next checkpoint tries again.
    """

    def __init__(self, store: Store, attempt: int, folder: RunFolder, stored: Iterable[str] = ()) -> None:
        """stored: names of the pictures that earlier attempts have copied, as returned by `restore`."""
        self.store, self.prefix, self.folder = store, layout.output_prefix(attempt), folder
        self._stored = set(stored)
        self._digests: dict[str, bytes] = {}

    def publish_history(self, step: int) -> None:
        """Copy `metrics.jsonl` and pictures up to a checkpoint, before it is committed: a resume from it needs both."""
        pictures = [path for path in self._pictures() if RunFolder.iteration_of(path) <= step]
        self._publish([self.folder.metrics, *pictures])

    def publish_results(self) -> None:
        """Copy what else there is to read of a run that is not over."""
        folder = self.folder
        self._publish([folder.job, folder.prompts, folder.environment, folder.progress])

    def uri(self, path: Path) -> str:
        """Where a file or folder of the run folder is in the storage."""
        return self.store.uri(self.prefix + path.relative_to(self.folder.root).as_posix())

    def publish_all(self, strict: bool = False) -> None:
        """Copy all results at the end of the run, with the adapter and the report. strict: raise what goes wrong."""
        folder = self.folder
        adapter = sorted(path for path in folder.adapter.rglob("*") if path.is_file())
        files = [folder.job, folder.prompts, folder.environment, folder.cost, folder.metrics, folder.progress]
        self._publish([*files, *self._pictures(), *adapter, folder.report], strict)

    def _pictures(self) -> list[Path]:
        return sorted(self.folder.samples.glob("iteration-*/*.png"))

    def _publish(self, paths: Iterable[Path], strict: bool = False) -> None:
        for path in paths:
            name = path.relative_to(self.folder.root).as_posix()
            if name in self._stored or not path.is_file():
                continue
            try:
                self._put(name, path.read_bytes())
            except (TailorPOError, OSError) as error:
                if strict:
                    raise
                logger.warning("%s is not published, it is here alone for now: %s", path, error)
                return  # the other files would fail at the same store, after as many retries

    def _put(self, name: str, data: bytes) -> None:
        if self._digests.get(name) == (digest := sha256(data).digest()):
            return
        self.store.write(self.prefix + name, data)
        self._digests[name] = digest
        if name.startswith(SAMPLES):
            self._stored.add(name)


def is_published(store: Store, attempt: int) -> bool:
    """Whether all results of a complete run are in the storage.

    attempt: the one that saved the last checkpoint. A later one may have copied the results.
    """
    names = set(store.names("attempt-"))
    later = (number for number in layout.inventory(names).attempts if number >= attempt)
    return any(layout.output_prefix(number) + "report.html" in names for number in later)  # the report is copied last


def earlier_prompts(store: Store, attempt: int, folder: RunFolder, digest: str | None) -> list[str] | None:
    """The training prompts of an attempt, from the output folder or else from the storage; None if neither has them.

    digest: that of these prompts, if it is known; without it the folder is believed.
    """

    def local() -> list[str]:
        return folder.read_prompts()[0]

    def copied() -> list[str]:
        values = parse_json(store.read(layout.output_prefix(attempt) + folder.prompts.name, RESULT_BYTES))
        return [str(prompt) for prompt in values["training"]]

    for read in (local, copied):
        try:
            found = read()
        except (TailorPOError, OSError, ValueError, KeyError, TypeError):
            continue
        if digest in (None, prompts.digest(found)):
            return found
    return None


def restore(store: Store, attempt: int, step: int, folder: RunFolder) -> set[str]:
    """Copy the history up to a checkpoint from the storage to the run folder, where the folder has less of it.

    Returns the names of all pictures in the storage. A history that cannot be read is a warning, not an error.
    """
    try:
        pictures = dict(_pictures(store, attempt, step))
        _restore(store, attempt, step, folder, pictures)
    except (TailorPOError, OSError) as error:
        logger.warning("the report will not show the whole history: %s", error)
        return set()
    return set(pictures)


def _restore(store: Store, attempt: int, step: int, folder: RunFolder, pictures: dict[str, str]) -> None:
    try:
        text = store.read(layout.output_prefix(attempt) + folder.metrics.name, RESULT_BYTES).decode(errors="replace")
    except MissingError:
        return
    remote, local = _until(step, parse_metrics(text)), _until(step, folder.read_metrics())
    if remote != local:
        if len(remote) < len(local):
            return
        files.replace(folder.metrics, "".join(json.dumps(line) + "\n" for line in remote))
        shutil.rmtree(folder.samples, ignore_errors=True)  # they may be another run's
    for name, key in pictures.items():
        if not (path := folder.root / name).exists():
            files.replace(path, store.read(key, RESULT_BYTES))


def _until(step: int, lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["iteration"] <= step]


def _pictures(store: Store, attempt: int, step: int) -> Iterator[tuple[str, str]]:
    """Name in the folder and key in the storage of each picture up to a checkpoint, also from earlier attempts."""
    for ref in ancestors(store, Ref(attempt, step)):
        prefix = layout.output_prefix(ref.attempt)
        for key in store.names(prefix + SAMPLES):
            name = key.removeprefix(prefix)
            if RunFolder.is_sample(name) and RunFolder.iteration_of(Path(name)) <= ref.step:
                yield name, key
