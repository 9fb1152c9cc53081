"""What becomes of a session's checkpoints: streamed to the storage, told to the record, results beside them."""

from collections.abc import Mapping
from typing import Any

from tailorpo_trainer.checkpoint import Attempt, Stream
from tailorpo_trainer.checkpoint.attempts import Groups
from tailorpo_trainer.publishing import Publisher
from tailorpo_trainer.record import Record
from tailorpo_trainer.spec import Checkpoint


class Saving:
    """The writer's side of a session: of several processes one has it. `stream.facts` are its figures."""

    def __init__(self, attempt: Attempt, record: Record, kept: Checkpoint, publisher: Publisher | None) -> None:
        self.attempt, self.record, self.publisher = attempt, record, publisher
        self.stream = Stream(
            attempt,
            kept.keep,
            kept.max_failures,
            before=publisher.history if publisher else None,
            after=publisher.results if publisher else None,
        )

    def save(self, iteration: int, groups: Groups, state: Mapping[str, Any]) -> None:
        """Copy the state; the rest happens beside the training. Raises what has ended the stream."""
        self.stream.save(iteration, groups, state, self.record.evaluated_reward(iteration))

    def follow(self) -> None:
        """Note what was committed meanwhile. Raises what has ended the stream."""
        newest, known = self.stream.newest, self.record.checkpoint
        if newest is not None and (known is None or known["step"] != newest.step):
            self.record.saved(newest.step, self.attempt.store.uri(newest.ref.prefix))
        self.stream.check()

    def close(self) -> None:
        """Wait until all is committed. Raises if the last checkpoint is not."""
        try:
            self.stream.close()
        finally:
            self.follow()

    def publish(self) -> None:
        """Copy the results as they are at the end, where they are kept elsewhere."""
        if self.publisher is not None:
            self.publisher.everything()
