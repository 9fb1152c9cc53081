"""The background stream: bounded, patient, and never silent about what was not written."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailorpo_trainer.checkpoint import (
    BackgroundWriter,
    Manifest,
    Ref,
    background,
    capture,
    checkpoints,
    load,
    open_run,
)
from tailorpo_trainer.checkpoint.attempt import Snapshot
from tailorpo_trainer.errors import ConfigurationError, ResourceError, TailorPOError, UnavailableError

Job = Callable[..., Any]


def snapshot(step: int, evaluation: float | None = None) -> Snapshot:
    return capture(step, {"adapter": {"up": torch.full((3,), step)}}, {"step": step}, evaluation)


class Broken:
    """Makes the writes of a store fail: `fail` times each with an error, or all of them with None."""

    def __init__(self, memory: Any, error: Exception, fail: int | None = None) -> None:
        self.error, self.left, self.tries = error, fail, 0
        memory.before = self

    def __call__(self, method: str, name: str) -> None:
        if method == "write" and "/step-" in name and self.left != 0:
            self.tries += 1
            self.left = None if self.left is None else self.left - 1
            raise self.error


class Gate:
    """Holds the writes of a store until it is opened."""

    def __init__(self, memory: Any) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        memory.before = self

    def __call__(self, method: str, name: str) -> None:
        if method == "write" and "/step-" in name:
            self.reached.set()
            assert self.open.wait(60)


@pytest.fixture
def begin(memory: Any, job: Job) -> Callable[..., BackgroundWriter]:
    def make(keep: int = 3, max_failures: int = 3, **options: Any) -> BackgroundWriter:
        options.setdefault("sleep", lambda _: None)
        return BackgroundWriter(open_run(memory, job()).begin(None), keep, max_failures, **options)

    return make


def test_all_is_written_when_it_closes(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    calls: list[tuple[Manifest, float]] = []
    opened = begin(keep=2, after=lambda *what: calls.append(what))
    for step in (10, 20, 30):
        opened.save(step, {"adapter": {"up": torch.full((3,), step)}}, {"step": step}, step / 10)
    opened.close()
    assert checkpoints(memory) == [Ref(1, 20), Ref(1, 30)]
    last = load(memory, Ref(1, 30))
    assert (last.state, last.manifest.evaluation) == ({"step": 30}, 3.0)
    assert [manifest.step for manifest, _ in calls] == [10, 20, 30]
    assert calls[-1][0] == last.manifest
    assert all(seconds > 0 for _, seconds in calls)
    opened.close()


def test_training_goes_on_while_a_checkpoint_is_written(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    gate, live = Gate(memory), torch.zeros(3)
    opened = begin()
    opened.save(1, {"adapter": {"up": live}}, {})
    assert gate.reached.wait(60)
    live.fill_(7)  # what is written is the state as it was
    gate.open.set()
    opened.close()
    assert load(memory, Ref(1, 1)).tensors("adapter")["up"].tolist() == [0, 0, 0]


def test_a_third_snapshot_waits_for_the_first(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    gate, opened = Gate(memory), begin()
    opened.submit(snapshot(1))
    assert gate.reached.wait(60)
    opened.submit(snapshot(2))  # waits in the queue: the submitter does not
    done = threading.Event()

    def submit() -> None:
        opened.submit(snapshot(3))
        done.set()

    third = threading.Thread(target=submit)
    third.start()
    assert not done.wait(0.05)
    gate.open.set()
    third.join(60)
    assert done.is_set()
    opened.close()
    assert [ref.step for ref in checkpoints(memory)] == [1, 2, 3]


@pytest.mark.parametrize("error", [UnavailableError("no answer"), ResourceError("no space")])
def test_a_failed_commit_is_tried_again_ever_more_patiently(
    memory: Any, begin: Callable[..., BackgroundWriter], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    calls: list[tuple[int, TailorPOError]] = []
    opened = begin(sleep=pauses.append, failed=lambda *what: calls.append(what))
    Broken(memory, error, background.TRIES - 1)
    opened.submit(snapshot(1))
    opened.close()
    assert checkpoints(memory) == [Ref(1, 1)]
    assert calls == [(1, error)] * (background.TRIES - 1)
    longest = [
        min(background.LONGEST_PAUSE, background.FIRST_PAUSE * 2**number) for number in range(background.TRIES - 1)
    ]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(caplog.records) == background.TRIES - 1
    assert str(error) in caplog.text


def test_only_several_failures_in_a_row_end_the_run(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    def fail_two(*_: Any) -> None:
        Broken(memory, UnavailableError("no answer"), 2 * background.TRIES)

    failed: list[int] = []
    fail_two()
    opened = begin(max_failures=3, after=fail_two, failed=lambda step, _: failed.append(step))
    for step in range(1, 7):  # two are given up, the third is written; and so once more
        opened.submit(snapshot(step))
    opened.close()
    assert [ref.step for ref in checkpoints(memory)] == [3, 6]
    assert failed == [step for step in (1, 2, 4, 5) for _ in range(background.TRIES)]


def test_after_the_last_allowed_failure_training_is_told(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    Broken(memory, UnavailableError("no answer"))
    opened = begin(max_failures=2)

    def train() -> None:
        for step in range(1, 5):  # one is written and one waits, so not before the third and not after the fourth
            opened.submit(snapshot(step))

    with pytest.raises(UnavailableError, match=r"^no answer; 2 checkpoints in a row could not be written$"):
        train()
    for ask in (opened.check, opened.close):
        with pytest.raises(UnavailableError, match="2 checkpoints in a row"):
            ask()
    assert checkpoints(memory) == []


def test_a_final_checkpoint_that_is_not_written_is_an_error(
    memory: Any, begin: Callable[..., BackgroundWriter]
) -> None:
    opened = begin(max_failures=100)
    opened.submit(snapshot(1))
    Broken(memory, UnavailableError("no answer"))
    opened.submit(snapshot(2))
    with pytest.raises(UnavailableError, match=r"^no answer$"):
        opened.close()


@pytest.mark.parametrize("error", [ConfigurationError("no permission"), KeyError("a bug")])
def test_what_trying_again_cannot_mend_ends_at_once(
    memory: Any, begin: Callable[..., BackgroundWriter], error: Exception
) -> None:
    broken = Broken(memory, error)
    opened = begin(max_failures=100)
    opened.submit(snapshot(1))
    with pytest.raises(type(error)):
        opened.close()
    assert broken.tries == 1


def test_what_happens_beside_a_commit_never_ends_a_run(
    memory: Any,
    begin: Callable[..., BackgroundWriter],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[tuple[str, int]] = []

    def around(name: str) -> Callable[[int], None]:
        def call(*_: Any) -> None:
            called.append((name, len(checkpoints(memory))))
            raise OSError(f"{name} failed")

        return call

    def refuse(*_: Any) -> None:
        raise UnavailableError("nothing can be deleted")

    opened = begin(before=around("before"), after=around("after"))
    with monkeypatch.context() as patch:
        patch.setattr(opened.attempt, "prune", refuse)
        for step in (1, 2, 3, 4, 5):
            opened.submit(snapshot(step))
        opened.save(6, {}, {})
        while len(called) < 12:  # else `close` would prune while it cannot
            opened.check()
    opened.close()
    assert called == [(name, number) for step in range(6) for name, number in (("before", step), ("after", step + 1))]
    assert {"before failed", "after failed"} <= {record.getMessage().rpartition(": ")[2] for record in caplog.records}
    assert "old checkpoints stay for now: nothing can be deleted" in caplog.text
    assert len(checkpoints(memory)) == 3  # pruned when it closed


def test_nothing_stays_in_memory(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    taken = snapshot(1)
    gone = weakref.ref(taken)
    opened = begin()
    opened.submit(taken)
    del taken
    opened.close()
    assert gone() is None


def test_the_first_error_counts(memory: Any, begin: Callable[..., BackgroundWriter]) -> None:
    Broken(memory, ConfigurationError("first"))
    opened = begin()
    opened.submit(snapshot(1))
    for _ in range(2):
        with pytest.raises(TailorPOError, match="first"):
            opened.close()
