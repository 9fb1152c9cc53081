"""Commit checkpoints in a background thread: training waits only for the copy to host memory."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tailorpo_trainer import files
from tailorpo_trainer.checkpoint.attempt import Attempt, Groups, Snapshot, capture
from tailorpo_trainer.checkpoint.format import Manifest
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.files import TRANSIENT

logger = logging.getLogger(__name__)

TRIES, FIRST_PAUSE, LONGEST_PAUSE = files.TRIES, files.FIRST_PAUSE, files.LONGEST_PAUSE
"""Of one commit, as of a file of results; botocore retries each request besides."""

LOOK_SECONDS = 5.0
"""Seconds between two looks for a newer attempt while there is nothing to write."""


class BackgroundWriter:
    """One background thread that hashes and commits snapshots, and deletes old checkpoints.

    At most one snapshot is being written and one is queued, which bounds memory: with a third one, `save` blocks.
    When `taken_over` says that a newer attempt owns the storage, nothing more is written and all snapshots are dropped.
    A commit that fails is retried for about a minute. After `max_failures` failed commits in a row, or after an error
    that a retry cannot solve, the writer stops: then `save`, `submit`, `check` and `close` raise that error.
    """

    def __init__(
        self,
        attempt: Attempt,
        keep: int,
        max_failures: int,
        before: Callable[[int], None] | None = None,
        after: Callable[[Manifest, float], None] | None = None,
        failed: Callable[[int, TailorPOError], None] | None = None,
        taken_over: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`taken_over` is asked before each commit, and every few seconds.

        Hooks run in the thread, and their exceptions are only logged: `before` a commit with its step, `after` it with
        its manifest and its seconds including retries, and `failed` with step and error after each failed try.
        """
        self.attempt, self.keep, self.max_failures = attempt, keep, max_failures
        self._before, self._after, self._failed, self._sleep = before, after, failed, sleep
        self._taken_over = taken_over
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._closing = False
        self._fatal: BaseException | None = None
        self._last_error: TailorPOError | None = None
        self._failures_in_a_row = 0
        self._prune_pending = False
        self._random = random.Random()  # not the global generator, which belongs to the run and its plug-ins
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, step: int, groups: Groups, state: Mapping[str, Any], evaluation: float | None = None) -> None:
        """Copy a state as soon as there is room for it, and queue the copy."""
        with self._changed:
            self._wait_for_room()
        self.submit(capture(step, groups, state, evaluation))

    def submit(self, snapshot: Snapshot) -> None:
        """Queue a snapshot; returns at once unless the queue is full."""
        with self._changed:
            self._wait_for_room()
            self._waiting = snapshot
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error that stopped the writer, if there is one."""
        if self._fatal is not None:
            raise self._fatal

    def close(self) -> None:
        """Wait until all snapshots are written. Raises if the newest one is not. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.check()
        if self._last_error is not None:
            raise self._last_error
        if self._prune_pending and not self._is_taken_over():
            self._prune()

    def _wait_for_room(self) -> None:
        while self._waiting is not None and self._fatal is None:
            self._changed.wait()
        self.check()
        assert not self._closing, "the writer is closed"

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
        except BaseException as error:
            with self._changed:
                self._fatal, self._waiting = error, None
                self._changed.notify_all()

    def _write_next(self) -> bool:
        """Write the next snapshot; False if there is none. A thread that waits holds no reference to a snapshot."""
        snapshot = self._take()
        if snapshot is not None and not self._is_taken_over():
            self._write(snapshot)
        return snapshot is not None

    def _take(self) -> Snapshot | None:
        with self._changed:
            while self._waiting is None and not self._closing:
                if not self._changed.wait(LOOK_SECONDS):
                    self._changed.release()  # the store may take long to answer
                    try:
                        self._is_taken_over()
                    finally:
                        self._changed.acquire()
            snapshot, self._waiting = self._waiting, None
            self._changed.notify_all()
            return snapshot

    def _write(self, snapshot: Snapshot) -> None:
        _call_hook(self._before, snapshot.step)
        since = time.perf_counter()
        try:
            manifest = self._commit(snapshot)
        except TRANSIENT as error:
            self._last_error = error
            self._failures_in_a_row += 1
            if (count := self._failures_in_a_row) >= self.max_failures:
                several = f"; {count} checkpoints in a row could not be written" if count > 1 else ""
                raise type(error)(f"{error}{several}") from None
            logger.warning("checkpoint of iteration %d given up, training continues: %s", snapshot.step, error)
            return
        self._failures_in_a_row, self._last_error = 0, None
        _call_hook(self._after, manifest, time.perf_counter() - since)
        self._prune()

    def _commit(self, snapshot: Snapshot) -> Manifest:
        pause = FIRST_PAUSE
        for number in range(1, TRIES + 1):
            try:
                return self.attempt.commit(snapshot)
            except TRANSIENT as error:
                _call_hook(self._failed, snapshot.step, error)
                if number == TRIES:
                    raise
                wait = pause * self._random.uniform(0.5, 1.0)
                logger.warning(
                    "checkpoint of iteration %d: try %d of %d failed, the next comes in %.1f s: %s",
                    snapshot.step, number, TRIES, wait, error,
                )  # fmt: skip
                self._sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError

    def _is_taken_over(self) -> bool:
        try:
            if taken := self._taken_over():
                self._last_error = None  # what could not be written is of no use any more
            return taken
        except TailorPOError as error:  # what is wrong with the store shows in the next commit
            logger.debug("no look for a newer attempt: %s", error)
            return False

    def _prune(self) -> None:
        """An error here does not end the run: old checkpoints only cost space."""
        self._prune_pending = True
        try:
            self.attempt.prune(self.keep)
            self._prune_pending = False
        except TailorPOError as error:
            logger.warning("old checkpoints stay for now: %s", error)


def _call_hook(action: Callable[..., None] | None, *arguments: Any) -> None:
    if action is None:
        return
    try:
        action(*arguments)
    except Exception as error:
        logger.warning("a hook of the checkpoint writer failed: %s: %s", type(error).__name__, error)
