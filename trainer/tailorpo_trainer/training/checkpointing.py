"""What becomes of a session's checkpoints: streamed to the storage, told to the record, results beside them."""

from collections.abc import Mapping
from typing import Any

from tailorpo_trainer.checkpoint import Attempt, BackgroundWriter, Manifest
from tailorpo_trainer.checkpoint.attempt import Groups
from tailorpo_trainer.results.publishing import Publisher
from tailorpo_trainer.results.run_folder import Output
from tailorpo_trainer.spec.job import Checkpoint
from tailorpo_trainer.training.recorder import Recorder


class Saving:
    """The writer's side of a session: of several processes one has it."""

    def __init__(self, attempt: Attempt, record: Recorder, kept: Checkpoint, publisher: Publisher | None) -> None:
        self.attempt, self.record, self.publisher = attempt, record, publisher
        self.stream = BackgroundWriter(
            attempt,
            kept.keep,
            kept.max_failures,
            before=publisher.history if publisher else None,
            after=self._saved,
            failed=record.checkpoint_failed,
        )

    def save(self, iteration: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Copy the state; the rest happens beside the training. Raises what has ended the stream."""
        self.stream.save(iteration, groups, state, self.record.evaluated_reward(iteration))

    def check(self) -> None:
        """Raise what has ended the stream."""
        self.stream.check()

    def close(self) -> None:
        """Wait until all is committed. Raises if the last checkpoint is not."""
        self.stream.close()

    def adapter(self, output: Output) -> str:
        """Where the result is found afterwards, when it is where `publish` puts it."""
        return self.publisher.uri(output.adapter) if self.publisher else str(output.adapter.absolute())

    def publish(self, strict: bool) -> None:
        """Copy the results as they are at the end, where they are kept elsewhere. strict: raise if that fails."""
        if self.publisher is not None:
            self.publisher.everything(strict)

    def _saved(self, manifest: Manifest, seconds: float) -> None:
        self.record.saved(manifest.step, self.attempt.store.uri(manifest.ref.prefix), seconds, manifest.size)
        if self.publisher is not None:
            self.publisher.results()
