"""Alarms: what is going wrong in a run, and what to do about it. Pure functions of the lines of `metrics.jsonl`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tailorpo_trainer.telemetry.observer import Line

NAMES = (
    "gap-at-zero",
    "logit-saturated",
    "ratio-clamped",
    "gradient-vanished",
    "rank-agreement-low",
    "over-optimisation",
    "not-finite",
)
"""The names of all alarms."""

ITERATIONS = 3
"""An alarm needs so many iterations in a row with the same symptom, since a single one is noise."""

FALL = 0.2
"""How far diversity may fall (as a share of its first value), and a watched reward (as a share of its spread)."""

VANISHED = 0.5
"""Share of the adapter's gradient that must be exactly 0 for an alarm."""

AGREEMENT, PAIRS = 0.7, 60
"""Share of pairs that the scoring decoder must order as the model's own does, judged on at least so many pairs."""


@dataclass(frozen=True)
class Alarm:
    """One problem. `name` is stable, for metrics and alerts."""

    name: str
    message: str


def from_iterations(lines: Sequence[Line]) -> Iterator[Alarm]:
    """Alarms from the last iterations (oldest first)."""
    recent = lines[-ITERATIONS:]
    if len(recent) < ITERATIONS:
        return
    pairs = all(line.get("tied") is not None for line in recent)
    if all(line["tied"] == 1 if pairs else _constant(line) for line in recent):
        what = "no pair had a winner" if pairs else "all pictures had the same reward"
        yield Alarm(
            "gap-at-zero",
            f"{what} in the last {ITERATIONS} iterations, so nothing is learnt: check that the reward can tell "
            "pictures of one prompt apart; raise spec.sampling.eta, or (spo) lower spec.method.threshold",
        )
    if pairs and all((line.get("logit_abs") or 0) > 5 for line in recent):
        yield Alarm(
            "logit-saturated",
            f"the preference logit was beyond ±5 on average in the last {ITERATIONS} iterations, where the loss hardly "
            "depends on it any more: lower spec.method.beta or spec.optimizer.learningRate",
        )
    if all((line.get("clamped") or 0) > 0.5 for line in recent):
        yield Alarm(
            "ratio-clamped",
            f"more than half of the likelihood ratios were clamped in the last {ITERATIONS} iterations and gave no "
            "gradient: lower spec.optimizer.learningRate, or raise "
            f"spec.method.{'clampRatio' if pairs else 'clipRange'}",
        )
    if all((line.get("gradient_zeros") or 0) > VANISHED and not _has_no_gradient(line) for line in recent):
        yield Alarm(
            "gradient-vanished",
            f"more than {VANISHED:.0%} of the adapter's gradient was exactly 0 in the last {ITERATIONS} iterations, "
            "since it is too small for the precision: use bf16 or fp32 in spec.training.precision",
        )


def from_checks(lines: Sequence[Line]) -> Iterator[Alarm]:
    """Alarms from the last checks of the scoring decoder, in lines of iterations (oldest first)."""
    checked = [line for line in lines if line.get("rank_agreement") is not None]
    pairs, agreed = 0, 0.0
    for line in reversed(checked):  # as few as possible, since the policy has moved away from the older ones
        pairs += line["rank_agreement_pairs"]
        agreed += line["rank_agreement"] * line["rank_agreement_pairs"]
        if pairs >= PAIRS:
            break
    if pairs >= PAIRS and agreed < AGREEMENT * pairs:
        yield Alarm(
            "rank-agreement-low",
            f"the scoring decoder ordered only {agreed / pairs:.0%} of {pairs} pairs as the model's own decoder does, "
            "so that much of what is learnt is its error: remove spec.model.scoringDecoder, or give a decoder that is "
            "closer to the model's",
        )


def from_evaluations(lines: Sequence[Line]) -> Iterator[Alarm]:
    """Alarms from the evaluations (oldest first; usually the first is the base model's)."""
    if not lines:
        return
    last = lines[-1]
    # The evaluation may change in the middle of a run: only evaluations like the last one are comparable.
    first = next(line for line in lines if all(line.get(key) == last.get(key) for key in ("images", "prompts")))
    if first is last:
        return
    change, error = _change(first, last, "reward", "reward_standard_error", "scores")
    if change is None or error is None or change <= 2 * error:
        return
    diversities = (_fallen_diversity(first, last, key) for key in ("diversity", "feature_diversity"))
    fallen = [*_fallen_rewards(first, last), *(text for texts in diversities for text in texts)]
    if fallen:
        yield Alarm(
            "over-optimisation",
            f"the reward rises while something else falls ({', '.join(fallen)}): look at the pictures; stop earlier, "
            "take an earlier checkpoint, raise spec.method.beta, or add what falls to spec.rewards",
        )


def _fallen_rewards(first: Line, last: Line) -> Iterator[str]:
    for name in last.get("watched") or []:
        one, other = (
            {
                "value": (line.get("rewards") or {}).get(name),
                "error": (line.get("rewards_standard_error") or {}).get(name),
                "scores": (line.get("watched_scores") or {}).get(name),
            }
            for line in (first, last)
        )
        change, error = _change(one, other, "value", "error", "scores")
        if change is None or error is None or one["error"] is None:
            continue
        spread = one["error"] * math.sqrt(first["images"])
        if change < -3 * error and change < -FALL * spread:
            yield f"{name} from {one['value']:.4g} to {other['value']:.4g}"


def _fallen_diversity(first: Line, last: Line, key: str) -> Iterator[str]:
    before, after = first.get(key), last.get(key)
    if before is None or after is None:
        return
    one, other = first.get(f"{key}_standard_error"), last.get(f"{key}_standard_error")
    if one is None or other is None:  # two pictures in all: their distance may be anything
        return
    if after < (1 - FALL) * before and after < before - 2 * math.hypot(one, other):
        yield f"{key.replace('_', ' ')} from {before:.3g} to {after:.3g}"


def _change(first: Line, last: Line, value: str, error: str, scores: str) -> tuple[float | None, float | None]:
    """The change of a mean and its standard error, from the differences of each picture where both scores are known."""
    one, other = first.get(scores), last.get(scores)
    if one and other and len(one) == len(other) > 1 and None not in (*one, *other):
        changes = [after - before for before, after in zip(one, other, strict=True)]
        mean = math.fsum(changes) / len(changes)
        variance = math.fsum((change - mean) ** 2 for change in changes) / (len(changes) - 1)
        return mean, math.sqrt(variance / len(changes))
    numbers = [first.get(value), last.get(value), first.get(error), last.get(error)]
    if None in numbers:
        return None, None
    before, after, *errors = (float(number) for number in numbers if number is not None)
    return after - before, math.hypot(*errors)


def _has_no_gradient(line: Line) -> bool:
    """Whether an iteration had nothing to learn from, which other alarms are about."""
    nothing = line["tied"] == 1 if line.get("tied") is not None else _constant(line)
    return nothing or (line.get("clamped") or 0) > 0.5


def _constant(line: Line) -> bool:
    """Whether all rewards of an iteration were equal, up to rounding."""
    mean, std = line.get("reward"), line.get("reward_std")
    return mean is not None and std is not None and std <= 1e-6 * abs(mean)
