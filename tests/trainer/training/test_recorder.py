"""The records of a run: always valid JSON, and correct after a resume too."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tailorpo_trainer.errors import DataError, NotFiniteError, RewardError
from tailorpo_trainer.evaluation.measurement import Measurement
from tailorpo_trainer.results import ownership, run_folder
from tailorpo_trainer.results.ownership import Owner
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.spec.progress import Checkpoint, Progress
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart
from tailorpo_trainer.telemetry.termination import TerminationReporter
from tailorpo_trainer.training.recorder import Recorder
from tailorpo_trainer.training.updater import UpdateFacts

WORK = {"images": 8.0, "reward_queries": 16.0}


class Shown(Observer):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.starts: list[RunStart] = []

    def begin(self, start: RunStart) -> None:
        self.starts.append(start)

    def observe(self, line: Line) -> None:
        self.lines.append(line)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time stands still unless `now` is moved."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("tailorpo_trainer.training.recorder.time.perf_counter", lambda: clock.now)
    return clock


def begin(
    folder: Path, iterations: int = 10, done: int = 0, totals: dict[str, float] | None = None, writes: bool = True
) -> Recorder:
    run_folder = RunFolder(folder)
    run_folder.create()
    recorder = Recorder(run_folder, TerminationReporter(Progress(name="test", of=iterations)), writes)
    recorder.observers = [Shown()]
    recorder.resume(1, done, totals or {}, Checkpoint(uri="x", step=done, time="t") if done else None)
    return recorder


def shown(recorder: Recorder) -> list[Line]:
    (observer,) = recorder.observers
    assert isinstance(observer, Shown)
    return observer.lines


def scorer(*scores: float) -> Scorer:
    total = torch.tensor(scores)
    policy = SimpleNamespace(decode_for_scoring=lambda latents: latents, sampler=SimpleNamespace(steps=4))
    reward = lambda *_: SimpleNamespace(total=total, term_scores={"main": total})  # noqa: E731
    recorder = Scorer(cast(Any, policy), cast(Any, reward), ["a"] * len(scores))
    recorder(torch.zeros(len(scores), 1), 0)
    return recorder


def facts(logit: float | Sequence[float] = 0.5, weight: float = 1.0, pairs: bool = True) -> UpdateFacts:
    return UpdateFacts(
        loss=0.69,
        gradient_norm=1.0,
        learning_rate=0.1,
        facts={"logit": torch.tensor(logit).expand(4).float()},
        step=torch.tensor([0, 0, 3, 3]),
        weight=torch.full((4,), float(weight)),
        gap=torch.tensor([1.0, 2.0, 3.0, 5.0]) if pairs else None,
    )


def measured(reward: Tensor, pictures: int = 2, spread: float | None = 0.2) -> Measurement:
    count = len(reward)
    return Measurement(
        ["a"] * count, reward, {"main": reward, "other": -reward}, spread, torch.rand(pictures, 3, 4, 4), 0.01
    )


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def written(recorder: Recorder) -> list[dict[str, Any]]:
    return [strict(text) for text in recorder.folder.metrics.read_text().splitlines()]


def progress(recorder: Recorder) -> dict[str, Any]:
    return cast(dict[str, Any], strict(recorder.folder.progress.read_text()))


def test_an_iteration_s_line_says_what_happened(tmp_path: Path, clock: SimpleNamespace) -> None:
    recorder = begin(tmp_path)
    recorder.phases.seconds["rollout"] = 1.5
    clock.now += 4
    recorder.iteration(1, scorer(1, 2, 3, 6), facts(), WORK)
    (line,) = written(recorder)
    assert line["reward"] == 3
    assert line["reward_std"] == pytest.approx(3.5**0.5)
    assert line["rewards"] == {"main": 3}
    assert line["gap_by_step"] == {"0": 1.5, "3": 4.0}
    assert (line["gap"], line["tied"], line["implicit_accuracy"]) == (2.75, 0, 1)
    assert line["images_per_second"] == 2
    assert line["eta_seconds"] == 36
    assert line["totals"] == WORK | {"seconds": 4}
    assert line["phase_seconds"] == {"rollout": 1.5}
    recorder.iteration(2, scorer(1.0), facts(logit=-1, weight=0), WORK)
    assert written(recorder)[-1]["phase_seconds"] == {}
    assert written(recorder)[-1]["implicit_accuracy"] is None
    assert written(recorder)[-1]["reward_std"] == 0  # of one image


@pytest.mark.parametrize(("logit", "accuracy"), [(0.0, None), ([0, 1, 2, -1], 2 / 3), (-1, 0)])
def test_implicit_accuracy_counts_only_pairs_that_the_policy_orders(
    tmp_path: Path, logit: float | list[float], accuracy: float | None
) -> None:
    """While it equals the reference all logits are 0: that is no answer, not a wrong one."""
    recorder = begin(tmp_path)
    recorder.iteration(1, scorer(1.0), facts(logit), WORK)
    assert written(recorder)[-1]["implicit_accuracy"] == (None if accuracy is None else pytest.approx(accuracy))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nothing_that_is_not_json_is_ever_written(tmp_path: Path, bad: float) -> None:
    recorder = begin(tmp_path)
    recorder.iteration(1, scorer(bad, 1.0), facts(logit=bad), WORK)
    recorder.iteration(2, Scorer(cast(Any, None), cast(Any, None), []), facts(pairs=False), WORK)
    recorder.evaluation(2, measured(torch.tensor([bad, 1.0]), spread=bad), ("other",), 1.0)
    recorder.evaluation(3, measured(torch.tensor([1.0]), spread=None), (), 1.0)
    lines = written(recorder)
    assert lines[0]["reward"] is lines[0]["logit_abs"] is lines[1]["reward"] is lines[2]["reward"] is None
    assert lines[3]["reward_standard_error"] is None
    assert progress(recorder)["metrics"] == {"evaluation": 1.0, "loss": 0.69}  # what is not known is left out
    assert [strict(json.dumps(line)) for line in shown(recorder)] == lines


def test_evaluations_are_no_training_time_and_count_in_what_is_left(tmp_path: Path, clock: SimpleNamespace) -> None:
    recorder = begin(tmp_path, iterations=12)

    def evaluate(iteration: int) -> None:
        clock.now += 10
        recorder.evaluation(iteration, measured(torch.ones(2)), (), 10.0)

    evaluate(0)
    for iteration in range(1, 13):
        clock.now += 2
        recorder.iteration(iteration, scorer(1.0), facts(), WORK)
        line = written(recorder)[-1]
        assert line["totals"]["seconds"] == 2 * iteration
        assert line["images_per_second"] == 4
        if iteration > 5:  # from then on it is known how often an evaluation comes: at 10 and at the end
            assert progress(recorder)["etaSeconds"] == 2 * (12 - iteration) + 10 * (2 if iteration <= 10 else 1)
        if iteration % 5 == 0 or iteration == 12:
            evaluate(iteration)
    assert progress(recorder)["etaSeconds"] == 0
    assert progress(recorder)["percent"] == 100


def test_a_resume_forgets_what_came_after_the_checkpoint_and_goes_on_counting(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    first = begin(tmp_path)
    for iteration in range(6):
        if iteration:
            clock.now += 3
            first.iteration(iteration, scorer(1.0), facts(), WORK)
        first.evaluation(iteration, measured(torch.ones(2)), (), 1.0)
    with first.folder.metrics.open("a") as file:
        file.write('3\n"text"\n{"kind": "iteration"}\n\xff\x00{"kind": "iteration", "iterat')
    (totals,) = (line["totals"] for line in first.lines if (line["kind"], line["iteration"]) == ("iteration", 3))
    clock.now += 1000

    recorder = begin(tmp_path, done=3, totals=totals)
    assert [(line["kind"], line["iteration"]) for line in recorder.lines] == [
        ("evaluation", 0), ("iteration", 1), ("evaluation", 1), ("iteration", 2), ("evaluation", 2),
        ("iteration", 3), ("evaluation", 3),
    ]  # fmt: skip
    assert written(recorder) == recorder.lines
    assert {path.name for path in recorder.folder.samples.iterdir()} == {f"iteration-{n:06d}" for n in range(4)}
    assert recorder.has_evaluation(3)
    assert not recorder.has_evaluation(4)
    state = progress(recorder)
    assert (state["phase"], state["step"], state["percent"], state["checkpoint"]["step"]) == ("Running", 3, 30, 3)
    clock.now += 5
    recorder.iteration(4, scorer(1.0), facts(), WORK)
    line = written(recorder)[-1]
    assert line["totals"] == {"images": 32, "reward_queries": 64, "seconds": 14}
    assert line["images_per_second"] == 1.6
    assert line["eta_seconds"] == 6 * 5 + 7 * 1  # that of this iteration comes too


def test_a_resume_without_its_figures_still_knows_how_far_it_is(tmp_path: Path) -> None:
    recorder = begin(tmp_path, done=7, totals={"images": 56})
    assert progress(recorder)["step"] == 7
    recorder.evaluation(7, measured(torch.ones(2)), (), 1.0)
    assert progress(recorder)["step"] == 7


def test_a_fresh_start_forgets_everything(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.evaluation(0, measured(torch.ones(2)), (), 1.0)
    recorder = begin(tmp_path)
    assert written(recorder) == []
    assert not list(recorder.folder.samples.glob("*"))
    assert progress(recorder)["step"] == 0


def test_an_alarm_is_raised_once_a_run_also_after_a_resume(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    for iteration in range(1, 6):
        recorder.iteration(iteration, scorer(1.0), facts(weight=0), WORK)
    recorder = begin(tmp_path, done=4)
    recorder.iteration(5, scorer(1.0), facts(weight=0), WORK)
    recorder.iteration(6, scorer(1.0), facts(weight=0), WORK)
    assert [line["iteration"] for line in written(recorder) if line["kind"] == "alarm"] == [3]
    recorder = begin(tmp_path, done=2)  # before it was raised
    recorder.iteration(3, scorer(1.0), facts(weight=0), WORK)
    assert [line["iteration"] for line in written(recorder) if line["kind"] == "alarm"] == [3]
    assert [line["kind"] for line in shown(recorder)] == ["iteration", "alarm"]


@pytest.mark.parametrize(("error", "alarmed"), [(NotFiniteError("loss is nan"), True), (RewardError("x"), False)])
def test_a_failure_has_the_last_word(tmp_path: Path, error: Any, alarmed: bool) -> None:
    recorder = begin(tmp_path)
    recorder.iteration(1, scorer(1.0), facts(), WORK)
    recorder.failed(error)
    state = progress(recorder)
    assert (state["phase"], state["step"], state["message"]) == ("Failed", 1, str(error))
    assert "etaSeconds" not in state
    assert state["error"] == {"class": type(error).__name__, "text": str(error), "exitCode": error.exit_code}
    assert [line["name"] for line in written(recorder) if line["kind"] == "alarm"] == ["not-finite"] * alarmed


def test_checkpoints_are_lines_and_the_newest_is_known(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    recorder.iteration(1, scorer(1.0), facts(), WORK)
    recorder.checkpoint_saved(1, "s3://bucket/run/step-1", 0.25, 1000)
    recorder.checkpoint_failed(2, OSError("http://user:secret@host/x: gone"))
    assert written(recorder)[1:] == [
        {"kind": "checkpoint", "iteration": 1, "uri": "s3://bucket/run/step-1", "seconds": 0.25, "bytes": 1000},
        {"kind": "checkpoint", "iteration": 2, "error": "http://host/x: gone"},
    ]
    assert shown(recorder) == written(recorder)
    state = progress(recorder)
    assert (state["checkpoint"]["uri"], state["checkpoint"]["step"]) == ("s3://bucket/run/step-1", 1)
    assert "resumedFrom" not in state


def test_a_checkpoint_that_completes_after_the_end_leaves_the_last_word(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    recorder.iteration(1, scorer(1.0), facts(), WORK)
    recorder.reporter.end(ValueError("a bug"))
    recorder.checkpoint_saved(1, "s3://bucket/run/step-1", 0.25, 1000)
    state = progress(recorder)
    assert (state["phase"], state["error"]["text"], state["checkpoint"]["step"]) == ("Failed", "a bug", 1)


def test_a_resume_says_from_where_and_tells_the_observers(tmp_path: Path) -> None:
    first = begin(tmp_path)
    for iteration in (1, 2, 3):
        first.iteration(iteration, scorer(1.0), facts(), WORK)
    recorder = begin(tmp_path, done=2, totals={"images": 16})
    assert progress(recorder)["resumedFrom"] == progress(recorder)["checkpoint"] == {"uri": "x", "step": 2, "time": "t"}
    (observer,) = recorder.observers
    assert isinstance(observer, Shown)
    assert [(b.attempt, b.iteration, b.totals, len(b.lines)) for b in observer.starts] == [(1, 2, {"images": 16}, 2)]
    assert observer.lines == []


def test_an_evaluation_s_line_holds_for_numpy_and_its_pictures_are_its_own(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    scores = torch.tensor([1e-9, 3e-9, 8e-9])
    recorder.evaluation(0, measured(scores, pictures=3), ("other",), 2.0)
    (line,) = written(recorder)
    assert line["scores"] == pytest.approx([1e-9, 3e-9, 8e-9], rel=1e-5)
    assert line["watched_scores"]["other"] == pytest.approx([-1e-9, -3e-9, -8e-9], rel=1e-5)
    assert line["reward_standard_error"] == pytest.approx(scores.double().numpy().std(ddof=1) / 3**0.5)
    recorder.evaluation(0, measured(scores[:2], pictures=2), (), 2.0)
    assert sorted(path.name for path in (recorder.folder.samples / "iteration-000000").iterdir()) == [
        "000.png",
        "001.png",
    ]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    run_folder.write_json(path, {"n": 1, "x": float("nan"), "deep": [{"y": float("inf")}, (1.0,)]})
    assert strict(path.read_text()) == {"n": 1, "x": None, "deep": [{"y": None}, [1.0]]}

    def interrupted(*_: Any) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr("tailorpo_trainer.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_folder.write_json(path, {"n": 2})
    assert strict(path.read_text())["n"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress.json"]


def test_whoever_hears_of_a_successor_first_it_is_told_on(tmp_path: Path) -> None:
    """The checkpoint thread looks for a newer attempt from its beginning on."""
    told: list[str] = []
    recorder = begin(tmp_path)
    recorder.release("attempt 2")
    recorder.own(Owner.new("here", 1), told.append)
    assert (told, recorder.owns()) == (["attempt 2"], False)
    assert not (tmp_path / ownership.NAME).exists()


def test_a_history_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read: Is a directory"):
        RunFolder(tmp_path).read_metrics()
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read: is not a regular file"):
        RunFolder(tmp_path).read_metrics()


def test_who_does_not_save_tells_of_no_checkpoint(tmp_path: Path) -> None:
    """They do not learn of newer checkpoints, and would report the one that the run went on from."""
    recorder = begin(tmp_path, done=2, writes=False)
    recorder.iteration(3, scorer(1.0), facts(), WORK)
    reported = recorder.reporter.progress
    assert (reported.step, reported.checkpoint) == (3, None)
    assert reported.resumed_from is not None
