"""Commit checkpoints in the background: training waits for the copy to host memory and for nothing else."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tailorpo_trainer.checkpoint.attempt import Attempt, Groups, Snapshot, capture
from tailorpo_trainer.checkpoint.format import Manifest
from tailorpo_trainer.errors import ResourceError, TailorPOError, UnavailableError

logger = logging.getLogger(__name__)

TRIES = 7
"""Of one commit, each after botocore's own."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between them: twice as long each time, and half of it by chance, so that many runs do not come at once."""

PASSES = (UnavailableError, ResourceError)
"""What may be over in a minute: a store that does not answer, or has no space."""


class BackgroundWriter:
    """One background thread that hashes and commits what it is given, and deletes what is old.

    At most one snapshot is being written and one waits, so memory is bounded: who brings a third waits as well.
    A commit that fails is tried again for about a minute; `max_failures` commits in a row that failed so, or anything
    that trying again cannot mend, end the stream: then `save`, `submit`, `check` and `close` raise it.
    """

    def __init__(
        self,
        attempt: Attempt,
        keep: int,
        max_failures: int,
        before: Callable[[int], None] | None = None,
        after: Callable[[Manifest, float], None] | None = None,
        failed: Callable[[int, TailorPOError], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Called in the thread, and what they raise is a warning: `before` a commit with its step, `after` it with its
        manifest and the seconds it took, retries included, and `failed` with the step after each try that failed."""
        self.attempt, self.keep, self.max_failures = attempt, keep, max_failures
        self._before, self._after, self._failed, self._sleep = before, after, failed, sleep
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._closing = False
        self._fatal: BaseException | None = None
        self._lost: TailorPOError | None = None
        self._given_up = 0  # commits, since the last that succeeded
        self._unpruned = False
        self._chance = random.Random()  # not the global one, which belongs to the run and its plug-ins
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, step: int, groups: Groups, state: Mapping[str, Any], evaluation: float | None = None) -> None:
        """Copy a state as soon as there is room for it, and leave the rest to the background."""
        with self._changed:
            self._until_room()
        self.submit(capture(step, groups, state, evaluation))

    def submit(self, snapshot: Snapshot) -> None:
        """Queue a snapshot; returns at once unless one is waiting already."""
        with self._changed:
            self._until_room()
            self._waiting = snapshot
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what ended the stream, if something did."""
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Wait until all is written. Raises if the newest snapshot is not. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.check()
        if self._lost is not None:
            raise self._lost
        if self._unpruned:
            self._prune()

    def _until_room(self) -> None:
        while self._waiting is not None and self._fatal is None:
            self._changed.wait()
        self.check()
        assert not self._closing, "the stream is closed"

    def _work(self) -> None:
        try:
            while self._one():
                pass
        except BaseException as error:
            with self._changed:
                self._fatal, self._waiting = error, None
                self._changed.notify_all()

    def _one(self) -> bool:
        """Handle the next snapshot; no reference to it is left while the thread waits for another."""
        snapshot = self._next()
        if snapshot is not None:
            self._handle(snapshot)
        return snapshot is not None

    def _next(self) -> Snapshot | None:
        with self._changed:
            while self._waiting is None and not self._closing:
                self._changed.wait()
            snapshot, self._waiting = self._waiting, None
            self._changed.notify_all()
            return snapshot

    def _handle(self, snapshot: Snapshot) -> None:
        _aside(self._before, snapshot.step)
        since = time.perf_counter()
        try:
            manifest = self._commit(snapshot)
        except PASSES as error:
            self._lost = error
            self._given_up += 1
            if (count := self._given_up) >= self.max_failures:
                several = f"; {count} checkpoints in a row could not be written" if count > 1 else ""
                raise type(error)(f"{error}{several}") from None
            logger.warning("checkpoint of iteration %d given up, training goes on: %s", snapshot.step, error)
            return
        self._given_up, self._lost = 0, None
        _aside(self._after, manifest, time.perf_counter() - since)
        self._prune()

    def _commit(self, snapshot: Snapshot) -> Manifest:
        pause = FIRST_PAUSE
        for number in range(1, TRIES + 1):
            try:
                return self.attempt.commit(snapshot)
            except PASSES as error:
                _aside(self._failed, snapshot.step, error)
                if number == TRIES:
                    raise
                wait = pause * self._chance.uniform(0.5, 1.0)
                logger.warning(
                    "checkpoint of iteration %d: try %d of %d failed, the next comes in %.1f s: %s",
                    snapshot.step, number, TRIES, wait, error,
                )  # fmt: skip
                self._sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError

    def _prune(self) -> None:
        """Old checkpoints cost space and no more: that they cannot be deleted now is not worth a run."""
        self._unpruned = True
        try:
            self.attempt.prune(self.keep)
            self._unpruned = False
        except TailorPOError as error:
            logger.warning("old checkpoints stay for now: %s", error)


def _aside(action: Callable[..., None] | None, *arguments: Any) -> None:
    if action is None:
        return
    try:
        action(*arguments)
    except Exception as error:
        logger.warning("beside a checkpoint: %s: %s", type(error).__name__, error)
