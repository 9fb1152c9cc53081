"""What stays: the newest checkpoints and the best one; and two attempts that live at once spoil nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailorpo_trainer.checkpoint import Attempt, Ref, Run, Store, checkpoints, load, open_run, open_store

Job = Callable[..., Any]


def save(attempt: Attempt, step: int, evaluation: float | None = None) -> None:
    from tailorpo_trainer.checkpoint import capture

    groups = {"adapter": {"up": torch.full((2,), step)}}
    attempt.commit(capture(step, groups, {"attempt": attempt.number, "step": step}, evaluation))


def test_the_best_stays_besides_the_newest(run: Run) -> None:
    attempt = run.begin(None)
    for step, evaluation in ((10, 1.0), (20, 5.0), (30, None), (40, 2.0), (50, 4.9), (60, None)):
        save(attempt, step, evaluation)
        attempt.prune(2)
    assert checkpoints(run.store) == [Ref(1, 20), Ref(1, 50), Ref(1, 60)]
    save(attempt, 70, 5.0)  # as good and newer
    attempt.prune(2)
    assert checkpoints(run.store) == [Ref(1, 60), Ref(1, 70)]


def test_the_best_of_an_earlier_attempt_stays_and_of_a_given_up_one_goes(run: Run) -> None:
    save(run.begin(None), 10, 9.0)
    fresh = run.begin(None)
    save(fresh, 10, 3.0)
    save(fresh, 20, 1.0)
    after = run.begin(run.latest())
    for step in (30, 40):
        save(after, step, 2.0)
    after.prune(1)
    assert checkpoints(run.store) == [Ref(2, 10), Ref(3, 40)]


def test_manifests_are_read_once_and_what_cannot_be_read_is_not_the_best(memory: Any, job: Job) -> None:
    run = open_run(memory, job())
    first = run.begin(None)
    for step, evaluation in ((10, 3.0), (20, 4.0), (30, 1.0)):
        save(first, step, evaluation)
    memory.objects[Ref(1, 20).manifest] = b"{"
    attempt = run.begin(run.latest())
    read: list[str] = []
    memory.before = lambda method, name: read.append(name) if method == "read" else None
    for step in (40, 50, 60):
        save(attempt, step)
        attempt.prune(2)
    assert checkpoints(memory) == [Ref(1, 10), Ref(2, 50), Ref(2, 60)]
    assert len(read) == len(set(read))


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "storage")
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/storage")


def test_a_dead_attempt_that_goes_on_writing_and_pruning_spoils_nothing(store: Store, job: Job) -> None:
    run = open_run(store, job("spec.training.iterations=1000"))
    dead = run.begin(None)
    save(dead, 10, 1.0)
    live = run.begin(run.latest())
    for step in range(20, 80, 10):
        save(dead, step, 100.0 + step)
        dead.prune(1)
        save(live, step, step / 10)
        live.prune(2)
        save(dead, step + 5)
        dead.prune(1)
        found = run.latest()
        assert found is not None
        assert found.manifest.ref == Ref(2, step)
        mine = [ref for ref in checkpoints(store) if ref.attempt == 2]
        assert mine == [Ref(2, step - 10), Ref(2, step)][-2 if step > 20 else -1 :]
        for ref in checkpoints(store):
            assert load(store, ref).state == {"attempt": ref.attempt, "step": ref.step}
    # The dead one's are older than all of ours: they go, but for its best and what came after the last pruning.
    assert [ref for ref in checkpoints(store) if ref.attempt == 1] == [Ref(1, 70), Ref(1, 75)]
