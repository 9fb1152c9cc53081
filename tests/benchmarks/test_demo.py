"""The demo's measurement: base model against adapter on the same new noise, and its pass criterion."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo

JOB = """\
apiVersion: tailorpo.dev/v1alpha1
kind: TailorPOJob
metadata: {name: demo}
spec:
  model: {name: MODEL}
  prompts: {builtin: tiny-animals}
  rewards: [{name: colourfulness, weight: 0.5}]
  method: {name: tailorpo}
  sampling: {steps: 2, trainedSteps: {count: 1}, guidanceScale: 3.0}
  optimizer: {learningRate: 1.0e-2}
  training: {iterations: 1, promptsPerIteration: 2}
  evaluation: {everyIterations: 0, prompts: {builtin: tiny-animals-held-out}}
"""


def seed_with(change: float, after: float) -> dict[str, Any]:
    return {
        "seed": 0,
        "pictures": 10,
        "before": {"reward": 5.0, "clip-score": 1.0},
        "change": {"reward": change, "clip-score": 0.1},
        "standard_error": {"reward": 1.0, "clip-score": 0.1},
        "judge": {"before": 1.0, "after": after},
    }


@pytest.mark.parametrize(
    ("change", "after", "holds"), [(3.0, 0.95, True), (2.9, 1.0, False), (9.0, 0.94, False), (-9.0, 1.0, False)]
)
def test_the_promise_is_about_both_reward_and_judge(change: float, after: float, holds: bool) -> None:
    assert demo.passed(seed_with(change, after)) == holds
    assert ("| kept |" in demo.markdown([seed_with(change, after)])) == holds


def test_base_and_adapter_are_measured_on_the_same_fresh_noise(tiny_pipeline: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.replace("MODEL", str(tiny_pipeline)), encoding="utf-8")
    found = demo.run([1, 2], tmp_path / "runs", job, pictures=4)
    assert [one["seed"] for one in found] == [1, 2]
    assert found[0]["before"] != found[1]["before"], "another seed, other noise"
    assert all(one["change"]["reward"] == pytest.approx(0.5 * one["change"]["colourfulness"]) for one in found)
    again = demo.measure(tmp_path / "runs" / "seed-1", 4)
    assert again["change"] == found[0]["change"]
