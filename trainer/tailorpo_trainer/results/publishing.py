"""The results beside the checkpoints, where these are kept elsewhere: `attempt-NNNN/output/…` in the storage."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from tailorpo_trainer.checkpoint import MissingError, Ref, Store, layout
from tailorpo_trainer.checkpoint.lineage import ancestors
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.results.run_folder import Output, whole_lines, write_text

logger = logging.getLogger(__name__)

SAMPLES = "samples/"


class Publisher:
    """Copies an output folder's files below one attempt's own prefix, each when it has changed.

    Pictures are put there once, by the attempt that drew them; everything else is whole in the newest attempt.
    What cannot be copied is a warning: the files are here, and the next checkpoint brings them along.
    """

    def __init__(self, store: Store, attempt: int, output: Output, stored: Iterable[str] = ()) -> None:
        """`stored`: names of pictures that earlier attempts have put there, as `restore` returns them."""
        self.store, self.prefix, self.output = store, layout.output_prefix(attempt), output
        self._stored = set(stored)
        self._digests: dict[str, bytes] = {}

    def history(self, step: int) -> None:
        """`metrics.jsonl` and pictures up to a checkpoint, before it is committed: who goes on from it has both."""
        pictures = [path for path in self._pictures() if Output.iteration_of(path) <= step]
        self._publish([self.output.metrics, *pictures])

    def results(self) -> None:
        """What else a person wants to see of a run that goes on."""
        output = self.output
        self._publish([output.job, output.prompts, output.environment, output.progress])

    def uri(self, path: Path) -> str:
        """Where a file or folder of the output is in the storage."""
        return self.store.uri(self.prefix + path.relative_to(self.output.root).as_posix())

    def everything(self, strict: bool = False) -> None:
        """Also the adapter and the report, when nobody writes to the folder any more. strict: raise what goes wrong."""
        output = self.output
        adapter = sorted(path for path in output.adapter.rglob("*") if path.is_file())
        files = [output.job, output.prompts, output.environment, output.cost, output.metrics, output.progress]
        self._publish([*files, *self._pictures(), *adapter, output.report], strict)

    def _pictures(self) -> list[Path]:
        return sorted(self.output.samples.glob("iteration-*/*.png"))

    def _publish(self, paths: Iterable[Path], strict: bool = False) -> None:
        for path in paths:
            name = path.relative_to(self.output.root).as_posix()
            if name in self._stored or not path.is_file():
                continue
            try:
                self._put(name, path.read_bytes())
            except (TailorPOError, OSError) as error:
                if strict:
                    raise
                logger.warning("%s is not published, it is here alone for now: %s", path, error)
                return  # what comes next would only wait for the same store

    def _put(self, name: str, data: bytes) -> None:
        if self._digests.get(name) == (digest := sha256(data).digest()):
            return
        self.store.write(self.prefix + name, data)
        self._digests[name] = digest
        if name.startswith(SAMPLES):
            self._stored.add(name)


def is_whole(store: Store, attempt: int) -> bool:
    """Whether the results of a finished run are in the storage: from the attempt that saved its last checkpoint, or a
    later one that had nothing left but to publish them. The report is put there last.
    """
    names = set(store.names("attempt-"))
    later = (number for number in layout.inventory(names).attempts if number >= attempt)
    return any(layout.output_prefix(number) + "report.html" in names for number in later)


def restore(store: Store, attempt: int, step: int, output: Output) -> set[str]:
    """Bring the history up to a checkpoint to this machine, where the storage knows more of it than the folder does.

    Returns the names of all pictures that the storage holds. That something is missing is a warning, not an error.
    """
    try:
        pictures = dict(_pictures(store, attempt, step))
        _restore(store, attempt, step, output, pictures)
    except (TailorPOError, OSError) as error:
        logger.warning("the report will not show the whole history: %s", error)
        return set()
    return set(pictures)


def _restore(store: Store, attempt: int, step: int, output: Output, pictures: dict[str, str]) -> None:
    try:
        text = store.read(layout.output_prefix(attempt) + output.metrics.name).decode(errors="replace")
    except MissingError:
        return
    there, here = _until(step, whole_lines(text)), _until(step, output.read_metrics())
    if there != here:
        if len(there) < len(here):
            return
        write_text(output.metrics, "".join(json.dumps(line) + "\n" for line in there))
        shutil.rmtree(output.samples, ignore_errors=True)  # they may be another run's
    for name, where in pictures.items():
        if not (path := output.root / name).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(where))


def _until(step: int, lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["iteration"] <= step]


def _pictures(store: Store, attempt: int, step: int) -> Iterator[tuple[str, str]]:
    """File and object of each picture up to a checkpoint, from its attempt and those that this one descends from."""
    for ref in ancestors(store, Ref(attempt, step)):
        prefix = layout.output_prefix(ref.attempt)
        for where in store.names(prefix + SAMPLES):
            name = where.removeprefix(prefix)
            if Output.is_sample(name) and Output.iteration_of(Path(name)) <= ref.step:
                yield name, where
