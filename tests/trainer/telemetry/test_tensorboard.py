"""Event files that TensorBoard reads, over a resume too."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Install = Callable[[Callable[[int], Any]], None]


def test_a_resumed_run_is_one_curve_with_pictures(start: Any, probe: Install, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def fail(call: int) -> None:
        if call == 8:  # in iteration 3, that is begun again
            raise KeyError("weights")

    parts: dict[str, Any] = {
        "evaluation": {"everyIterations": 2, "images": 4},
        "checkpoint": {"everyIterations": 1},
        "training": {"iterations": 4, "promptsPerIteration": 3},
    }
    probe(fail)
    assert start("--tensorboard", **parts) == 70
    probe(lambda call: None)
    assert start("--tensorboard", **parts) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"training/loss", "training/phase_seconds/rollout", "evaluation/rewards/probe"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("evaluation/reward")] == [0, 2, 4]
    assert len(tags["images"]) == 4
    (first, *_), *_ = (events.Images(tag) for tag in tags["images"])
    assert (first.width, first.height) == (16, 16)


def test_without_tensorboard_it_is_one_sentence(
    start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert start("--tensorboard", rewards=[{"name": "colourfulness"}]) == 78
    assert capsys.readouterr().err == (
        "error: --tensorboard: it is not installed: pip install 'tailorpo[tensorboard]'\n"
    )
