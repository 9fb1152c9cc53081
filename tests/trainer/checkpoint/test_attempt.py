"""Attempts: who may write and delete what, and where a resume goes on."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorpo_trainer.checkpoint import Attempt, Ref, Run, capture, checkpoints, latest, load, open_run, open_store
from tailorpo_trainer.errors import ConfigurationError, ExitCode

Job = Callable[..., Any]


def save(attempt: Attempt, step: int) -> None:
    attempt.save(step, {"adapter": {"up": torch.full((2,), step)}}, {"attempt": attempt.number, "step": step})


def resume(run: Run) -> Ref | None:
    found = run.latest()
    return None if found is None else found.manifest.ref


def test_attempts_count_up_and_say_where_they_went_on(run: Run) -> None:
    first = run.begin(run.latest())
    save(first, 10)
    second = run.begin(run.latest())
    assert (first.number, second.number) == (1, 2)
    records = [json.loads(run.store.read(f"attempt-000{number}/attempt.json")) for number in (1, 2)]
    assert [record["parent"] for record in records] == [None, {"attempt": 1, "step": 10}]


def test_the_number_is_the_operators_unless_the_storage_is_ahead(run: Run) -> None:
    assert run.begin(None, at_least=3).number == 3
    assert run.begin(None, at_least=3).number == 4  # the same pod started twice
    assert run.begin(None, at_least=1).number == 5  # the job was deleted and applied again
    assert run.begin(None).number == 6


def test_starters_at_the_same_moment_get_different_numbers(run: Run) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = [attempt.number for attempt in pool.map(run.begin, [None] * 8)]
    assert sorted(numbers) == list(range(1, 9))


def test_the_first_of_two_new_runs_decides(tmp_path: Path, job: Job) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: open_run(open_store(tmp_path), job()), range(8)))
    assert len({run.record.encode() for run in runs}) == 1


def test_a_stale_writer_spoils_nothing(run: Run) -> None:
    stale = run.begin(None)
    save(stale, 10)
    live = run.begin(run.latest())
    save(stale, 20)
    stale.prune(1)
    assert checkpoints(run.store) == [Ref(1, 10), Ref(1, 20)]
    save(live, 15)
    save(stale, 30)
    stale.prune(1)
    assert resume(run) == Ref(2, 15)
    live.prune(1)
    assert checkpoints(run.store) == [Ref(2, 15)]
    save(stale, 40)
    assert resume(run) == Ref(2, 15)


def test_a_stale_writer_whose_objects_were_pruned_commits_nothing_that_counts(memory: Any, job: Job) -> None:
    """Its manifest lands after the live attempt deleted its unfinished objects."""
    run = open_run(memory, job())
    stale = run.begin(None)
    save(stale, 10)
    live = run.begin(run.latest())

    def interrupt(method: str, name: str) -> None:
        if name == Ref(1, 20).manifest and method == "write":
            memory.before = lambda method, name: None
            save(live, 20)
            live.prune(3)

    memory.before = interrupt
    save(stale, 20)
    assert Ref(1, 20) in checkpoints(memory)
    assert resume(run) == Ref(2, 20)
    save(live, 30)
    live.prune(1)
    assert checkpoints(memory) == [Ref(2, 30)]
    assert not memory.names("attempt-0001/step-")


def test_fresh_begins_from_nothing_and_deletes_nothing(run: Run) -> None:
    old = run.begin(None)
    save(old, 10)
    fresh = run.begin(None)
    assert resume(run) is None  # killed now, the fresh run begins from nothing again
    after = run.begin(run.latest())
    assert resume(run) is None
    save(after, 5)
    assert resume(run) == Ref(3, 5)
    assert checkpoints(run.store) == [Ref(1, 10), Ref(3, 5)]
    assert fresh.start is None


def test_an_attempt_without_checkpoints_goes_on_where_its_parents_were(run: Run) -> None:
    save(run.begin(None), 10)
    run.begin(run.latest())
    run.begin(run.latest())
    assert resume(run) == Ref(1, 10)


def test_an_unreadable_attempt_record_does_not_lose_the_run(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    save(run.begin(None), 10)
    run.begin(run.latest())
    Path(run.store.uri("attempt-0002/attempt.json")).write_bytes(b"")
    assert resume(run) == Ref(1, 10)
    assert "attempt-0002/attempt.json" in caplog.text
    assert run.begin(run.latest()).number == 3


def test_nothing_is_pruned_before_the_first_commit(run: Run) -> None:
    """The newest checkpoint is corrupt: the one that this attempt went on from must stay."""
    first = run.begin(None)
    save(first, 10)
    save(first, 20)
    Path(run.store.uri("attempt-0001/step-00000020/state.json")).unlink()
    second = run.begin(run.latest())
    second.prune(1)
    assert resume(run) == Ref(1, 10)
    save(second, 12)
    second.prune(1)
    assert checkpoints(run.store) == [Ref(2, 12)]


@pytest.mark.parametrize("changes", range(12))
def test_killed_while_pruning_nothing_half_deleted_exists(
    memory: Any, job: Job, crash: type[Exception], changes: int
) -> None:
    run = open_run(memory, job())
    attempt = run.begin(None)
    for step in (10, 20, 30, 40):
        save(attempt, step)
    memory.changes_left = changes
    with pytest.raises(crash):
        attempt.prune(1)
    memory.changes_left = None
    for ref in checkpoints(memory):
        complete(memory, ref)
    after = run.begin(run.latest())
    save(after, 50)
    after.prune(1)
    assert {name.rpartition("/")[0] for name in memory.names("attempt-") if "/step-" in name} == {
        "attempt-0002/step-00000050"
    }


def test_a_step_is_committed_once(run: Run) -> None:
    first = run.begin(None)
    saved = first.save(10, {}, {"samples": 1})
    assert first.save(10, {}, {"samples": 2}) == saved
    with pytest.raises(ValueError, match="step 9 comes before the committed step 10"):
        first.save(9, {}, {})
    second = run.begin(run.latest())
    assert second.save(10, {}, {}) == saved
    assert checkpoints(run.store) == [Ref(1, 10)]


@pytest.mark.parametrize("changes", range(4))
def test_a_failed_commit_can_be_tried_again(memory: Any, job: Job, crash: type[Exception], changes: int) -> None:
    run = open_run(memory, job())
    attempt = run.begin(None)
    memory.changes_left = changes
    if changes < 3:
        with pytest.raises(crash):
            save(attempt, 10)
    else:
        save(attempt, 10)
    memory.changes_left = None
    save(attempt, 10)
    assert resume(run) == Ref(1, 10)


def test_a_manifest_that_landed_although_its_write_failed_is_replaced(memory: Any, job: Job) -> None:
    run = open_run(memory, job())
    attempt = run.begin(None)

    def land_and_fail(method: str, name: str) -> None:
        if method == "write" and name.endswith("manifest.json"):
            memory.before = lambda method, name: None
            memory.objects[name] = b"{}"
            raise OSError("the answer was lost")

    memory.before = land_and_fail
    with pytest.raises(OSError, match="lost"):
        attempt.save(10, {}, {"tries": 1})
    attempt.save(10, {}, {"tries": 2})
    assert load(memory, Ref(1, 10)).state == {"tries": 2}


def test_a_snapshot_shares_nothing_with_the_live_state(run: Run) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    live = {"whole": base, "view": base[:, 1:3].t(), "expanded": base[:1].expand(2, 4), "scalar": base[0, 0]}
    live["parameter"] = torch.nn.Parameter(base)
    live["half"] = base.bfloat16()
    state = {"losses": [1.0]}
    expected = {name: tensor.detach().clone() for name, tensor in live.items()}
    snapshot = capture(1, {"adapter": live}, state)
    base.zero_()
    live["half"].zero_()
    state["losses"].append(2.0)
    run.begin(None).commit(snapshot)
    loaded = latest(run.store)
    assert loaded is not None
    assert loaded.state == {"losses": [1.0]}
    found = loaded.tensors("adapter")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())


@pytest.mark.parametrize("state", [{"loss": float("nan")}, {"betas": (0.9, 0.999)}, {0: "a"}])
def test_a_state_that_json_would_change_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        capture(1, {}, state)


def test_fewer_iterations_than_are_done(tmp_path: Path, job: Job) -> None:
    run = open_run(open_store(tmp_path), job("spec.training.iterations=20"))
    save(run.begin(None), 20)
    assert resume(run) == Ref(1, 20)
    assert resume(open_run(open_store(tmp_path), job("spec.training.iterations=30"))) == Ref(1, 20)
    with pytest.raises(ConfigurationError) as caught:
        open_run(open_store(tmp_path), job("spec.training.iterations=19")).latest()
    assert "spec.training.iterations: 19, but 20 are done" in str(caught.value)
    assert "set at least 20" in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIGURATION


def test_other_software_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("tailorpo_trainer.checkpoint.attempt.software", lambda: {"torch": "1.0"})
    save(run.begin(None), 10)
    with caplog.at_level(logging.WARNING):
        run.begin(run.latest())
    assert 'versions.torch: "1.0" there' in caplog.text


# Steps of a life: who acts, what it does, and after how many changes of the store it is killed (None: not).
MOVES = st.tuples(
    st.sampled_from(["save", "save", "save", "prune", "prune", "begin", "fresh"]),
    st.sampled_from([False, False, False, True]),
    st.integers(1, 3),
    st.sampled_from([None, None, None, None, 0, 1, 2, 3, 4, 5, 6]),
)


@settings(max_examples=150, deadline=None)
@given(moves=st.lists(MOVES, min_size=12, max_size=40))
def test_whatever_happens_the_newest_commit_survives(
    moves: list[tuple[str, bool, int, int | None]], request: Any
) -> None:
    job, crash = request.getfixturevalue("job"), request.getfixturevalue("crash")
    memory = type(request.getfixturevalue("memory"))()
    run = open_run(memory, job("spec.training.iterations=1000"))
    live = run.begin(None)
    stale: Attempt | None = None
    acknowledged: Ref | None = None  # what the newest lineage acknowledged last
    for step, (action, old, keep, changes) in enumerate(moves, start=1):
        actor = stale if old and stale is not None else live
        before = dict(memory.objects)
        committed = checkpoints(memory)
        memory.changes_left = changes
        died = False
        try:
            match action:
                case "save":
                    save(actor, step)
                    acknowledged = Ref(live.number, step) if actor is live else acknowledged
                case "prune":
                    actor.prune(keep)
                case _:
                    stale, live = live, run.begin(None if action == "fresh" else run.latest())
                    acknowledged = None if action == "fresh" else acknowledged
        except crash:
            died = True
        memory.changes_left = None

        for ref in checkpoints(memory):
            if ref in committed or ref.attempt == live.number:
                complete(memory, ref)
        found = resume(run)
        if acknowledged is not None:
            assert found is not None
            assert found >= acknowledged
        if action == "prune" and actor is stale:
            assert memory.objects == before
        if action == "prune" and actor is live and not died and live._newest is not None:
            assert checkpoints(memory) == committed[-keep:]
            newest = Ref(live.number, live._newest.step)
            left = {name.rpartition("/")[0] + "/" for name in memory.names("attempt-") if "/step-" in name}
            assert {prefix for prefix in left if prefix <= newest.prefix} == {ref.prefix for ref in committed[-keep:]}
        if died:  # the process that was killed is gone, and the operator starts the next attempt
            stale = None if actor is stale else stale
            live = run.begin(run.latest())


def complete(memory: Any, ref: Ref) -> None:
    loaded = load(memory, ref)
    assert loaded.state == {"attempt": ref.attempt, "step": ref.step}
    assert loaded.tensors("adapter")["up"].tolist() == [ref.step] * 2
