"""What is going wrong, and what to do about it: pure functions of what a run has measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
"""One line of `metrics.jsonl`."""

FALL = 0.2
"""Share of its first value that diversity may lose before it counts as falling."""


@dataclass(frozen=True)
class Alarm:
    """One thing to know. `name` is stable, for metrics and alerts."""

    name: str
    message: str


def from_iterations(lines: Sequence[Line]) -> Iterator[Alarm]:
    """Alarms that the last iterations (oldest first) give reason for."""
    recent = lines[-3:]
    if len(recent) < 3:
        return
    if all(line.get("tied", 0) == 1 for line in recent):
        yield Alarm(
            "gap-at-zero",
            "no pair of the last 3 iterations had a winner: the reward cannot tell the candidates apart; check the "
            "reward, lower method.threshold, or raise sampling.eta",
        )
    if all(line.get("logit_abs", 0) > 5 for line in recent):
        yield Alarm(
            "logit-saturated",
            "the preference logit is beyond +-5 on average, so that the loss has no gradient left: lower method.beta "
            "or optimizer.learningRate",
        )
    if all((line.get("clamped") or 0) > 0.5 for line in recent):
        yield Alarm(
            "ratio-clamped",
            "more than half of the likelihood ratios are clamped and give no gradient: lower optimizer.learningRate, or "
            "raise the method's clamp",
        )


def from_evaluations(lines: Sequence[Line]) -> Iterator[Alarm]:
    """Alarms that the evaluations (first is the base model's) give reason for."""
    if len(lines) < 2:
        return
    first, last = lines[0], lines[-1]
    error = max(first["reward_standard_error"], last["reward_standard_error"])
    if last["reward"] - first["reward"] <= 2 * error:
        return
    fallen = [
        f"{name} from {first['rewards'][name]:.4g} to {last['rewards'][name]:.4g}"
        for name in last.get("watched", [])
        if last["rewards"][name] - first["rewards"][name]
        < -3 * max(first["rewards_standard_error"][name], last["rewards_standard_error"][name])
    ]
    if first.get("diversity") and last["diversity"] < (1 - FALL) * first["diversity"]:
        fallen.append(f"diversity from {first['diversity']:.3g} to {last['diversity']:.3g}")
    if fallen:
        yield Alarm(
            "over-optimisation",
            f"the reward rises while something else falls ({', '.join(fallen)}): look at the pictures; stop earlier, take "
            "an earlier checkpoint, raise method.beta, or add what falls to the rewards",
        )
