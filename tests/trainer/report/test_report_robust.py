"""A report of every run there is: stopped, resumed, short, long, damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import report
from tailorpo_trainer.document import parse
from tailorpo_trainer.training.loop import run

Make = Callable[..., Path]
Read = Callable[[Path], Any]


def rewrite(output: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change or drop lines of the metrics."""
    path = output / "metrics.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_stopped(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(iterations=60, done=33))).text
    assert "stopped after 33 of 60 iterations" in text
    assert "rose from" in text
    assert "after 33 of 60 iterations: +" in text


def test_resumed(a_run: Make, page: Read) -> None:
    output = a_run()
    (output / "progress.json").write_text('{"phase": "Succeeded", "attempt": 3}')
    text = page(report.write(output)).text
    assert "complete, 60 iterations, 3 attempts" in text
    assert "resumed from checkpoints" in text


def test_one_evaluation(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(done=4))).text
    assert "Only the base model was evaluated after 4 of 60 iterations" in text
    assert "Pictures of the base model" in text
    assert "→" not in text


def test_killed_before_the_first_iteration(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(done=0))).text
    assert "Only the base model was evaluated after 0 of 60 iterations" in text
    assert "Nothing to draw yet." in text


def test_no_evaluation(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run(every=0)))
    assert "Nothing was measured on held-out noise" in found.text
    assert "pictures" not in found.ids
    assert "training-loss" in found.data["charts"]


def test_nothing_recorded(a_run: Make, page: Read) -> None:
    output = a_run()
    for name in ("metrics.jsonl", "progress.json", "environment.json", "prompts.json"):
        (output / name).unlink()
    text = page(report.write(output)).text
    assert "Nothing was recorded yet." in text
    assert "No time was recorded." in text


def test_no_difference_is_called_so(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(gain=0.0))).text
    assert "No change of held-out colourfulness that could be told from chance" in text


def test_a_fall_is_called_so(a_run: Make, page: Read) -> None:
    assert "Held-out colourfulness fell from" in page(report.write(a_run(gain=-5.0))).text


def test_a_watched_fall_is_told(a_run: Make, page: Read) -> None:
    output = a_run()

    def collapse(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "evaluation" and line["iteration"]:
            line["rewards"]["clip-score"] = 15.0
            line["diversity"] = 0.1
        return line

    rewrite(output, collapse)
    text = page(report.write(output)).text
    assert "At the same time clip-score fell from 24.0 to 15.0" in text
    assert "At the same time diversity fell from 0.300 to 0.100" in text


def test_held_out_prompts_are_called_so_only_if_they_are(a_run: Make, page: Read) -> None:
    assert "prompts and noise that training never sees" in page(report.write(a_run("other"))).text
    same = page(report.write(a_run("same", held_out=("a cat", "a dog")))).text
    assert "noise that training never sees; the prompts are those of the training" in same


def test_ddpo_has_no_gap(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run(method="ddpo")))
    assert "gaps" not in found.ids
    assert "training-gap" not in found.data["charts"]


def test_nan_none_and_unknown_lines(a_run: Make, page: Read) -> None:
    output = a_run()

    def spoil(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "iteration" and line["iteration"] % 7 == 0:
            nan = float("nan")
            line |= {"loss": nan, "gap": None, "gap_by_step": {"0": nan}, "logit": float("inf"), "phase_seconds": None}
        if line["kind"] == "evaluation" and line["iteration"] == 20:
            line |= {"reward": float("nan"), "scores": None, "diversity": None, "rewards": None, "prompts": None}
        return line

    rewrite(output, spoil)
    with (output / "metrics.jsonl").open("a") as metrics:
        metrics.write('3\n"text"\n{"kind": "later", "iteration": 1}\n{"kind": "alarm", "iteration": 2}\n{"iteration": ')
    found = page(report.write(output))
    assert None in found.data["charts"]["training-loss"]["series"][0]["y"]
    assert found.data["charts"]["reward"]["series"][0]["y"][2] is None
    assert "nan" not in found.text.lower()


def test_scores_that_do_not_pair_are_compared_by_their_means(a_run: Make, page: Read) -> None:
    output = a_run()
    rewrite(
        output, lambda line: line | {"scores": line["scores"][: 32 - line["iteration"]]} if "scores" in line else line
    )
    assert "32 pictures, not paired" in page(report.write(output)).text


def test_missing_and_damaged_pictures(a_run: Make, page: Read) -> None:
    output = a_run()
    (output / "samples" / "iteration-000000" / "001.png").unlink()
    (output / "samples" / "iteration-000060" / "002.png").write_bytes(b"no picture")
    found = page(report.write(output))
    assert found.text.count("not kept") == 2
    assert len(found.images) == 14
    bare = a_run("bare", pictures=False)
    assert "pictures" not in page(report.write(bare)).ids


def test_large_pictures_are_scaled_down_and_stay_within_the_budget(a_run: Make, page: Read) -> None:
    output = a_run(side=300, iterations=20, every=10)
    written = report.write(output)
    assert written.stat().st_size < 2_500_000
    assert "pixels" not in page(written).html.split("<main")[1]


def test_ten_thousand_iterations(a_run: Make, page: Read) -> None:
    written = report.write(a_run(iterations=10_000, every=19, images=8, pictures=False))
    found = page(written)
    assert written.stat().st_size < 2_000_000
    for chart in found.data["charts"].values():
        assert all(len(series["y"]) <= 500 for series in chart["series"])


def test_several_rewards(a_run: Make, page: Read) -> None:
    rewards = [{"name": "clip-score"}, {"name": "jpeg-compressibility", "weight": -0.5}]
    text = page(report.write(a_run(spec={"rewards": rewards}))).text
    assert "1 × clip-score − 0.5 × jpeg-compressibility" in text


@pytest.mark.parametrize("method", ["tailorpo", "ddpo"])
def test_a_real_run(document: Callable[..., dict[str, Any]], tmp_path: Path, page: Read, method: str) -> None:
    run(parse(document(method={"name": method})), tmp_path, display="quiet")
    found = page(report.write(tmp_path))
    assert "held-out reward" in found.values
    assert ("gaps" in found.ids) == (method == "tailorpo")
    assert len(found.images) == 8
