"""Writes the checkpoints of a session to the storage, and the results beside them."""

from collections.abc import Mapping
from typing import Any

from tailorpo_trainer.checkpoint import Attempt, BackgroundWriter, Manifest
from tailorpo_trainer.checkpoint.attempt import Groups
from tailorpo_trainer.results.publishing import Publisher
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.spec.job import Checkpoint
from tailorpo_trainer.training.recorder import Recorder


class Checkpointing:
    """Commits checkpoints in the background and records them. Of several processes only the first has one.

    publisher: copies the results, where the checkpoints are not in the run folder.
    """

    def __init__(self, attempt: Attempt, recorder: Recorder, options: Checkpoint, publisher: Publisher | None) -> None:
        self.attempt, self.recorder, self.publisher = attempt, recorder, publisher
        self.writer = BackgroundWriter(
            attempt,
            options.keep,
            options.max_failures,
            before=publisher.publish_history if publisher else None,
            after=self._committed,
            failed=recorder.checkpoint_failed,
            taken_over=self.is_taken_over,
        )

    def is_taken_over(self) -> bool:
        """Whether a newer attempt or another run owns the storage or the output folder: then nothing is written."""
        if self.recorder.owns() and (newer := self.attempt.successor()):
            self.recorder.release(f"attempt {newer}")
        return not self.recorder.writes

    def save(self, iteration: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Copy the state, and commit it while training goes on. Raises the error that stopped the writer."""
        if not self.recorder.writes:
            return
        self.writer.save(iteration, groups, state, self.recorder.evaluation_reward(iteration))

    def check(self) -> None:
        """Raise the error that stopped the writer, if one did."""
        self.writer.check()

    def close(self) -> None:
        """Wait until all checkpoints are committed. Raises if the last one cannot be."""
        self.writer.close()

    def adapter_uri(self, folder: RunFolder) -> str:
        """Where the trained adapter is after `publish`."""
        return self.publisher.uri(folder.adapter) if self.publisher else str(folder.adapter.absolute())

    def publish(self, strict: bool) -> None:
        """Copy the final results to the storage, if it is not the run folder. strict: raise if that fails."""
        if self.publisher is not None and not self.is_taken_over():
            self.publisher.publish_all(strict)

    def _committed(self, manifest: Manifest, seconds: float) -> None:
        self.recorder.checkpoint_saved(
            manifest.step, self.attempt.store.uri(manifest.ref.prefix), seconds, manifest.size
        )
        if self.publisher is not None:
            self.publisher.publish_results()
