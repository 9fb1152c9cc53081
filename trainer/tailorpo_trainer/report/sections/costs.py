"""Time and work of a run, by phase and by kind."""

from collections.abc import Mapping
from dataclasses import dataclass

from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Run, numbers
from tailorpo_trainer.stats import Value, flops

PHASES = {
    "rollout": "drawing trajectories and candidates",
    "decode": "latents to pictures",
    "score": "asking the rewards",
    "check": "scoring decoder against the model's own",
    "update": "losses, gradients, optimiser",
    "checkpoint": "saving",
    "evaluation": "measuring on held-out noise",
}
WORK = {
    "images": "training images",
    "reward_queries": "reward queries",
    "denoiser_forwards": "denoiser forwards",
    "denoiser_forwards_with_gradient": "of these forwards, with a gradient",
    "decodes": "decoded pictures",
    "scoring_decodes": "decoded by the scoring decoder",
}


@dataclass(frozen=True)
class Slice:
    """One share of a total. text: the amount with its unit."""

    key: str
    name: str
    note: str
    amount: float
    share: float
    text: str


def time_by_phase(run: Run) -> list[Slice]:
    """Seconds of all iterations and evaluations by phase; `other` is time outside of all phases."""
    spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    for line in run.iterations:
        for key, value in numbers(line.get("phase_seconds")).items():
            spent[key] = spent.get(key, 0.0) + (value or 0.0)
    spent["other"] = max(0.0, (training_seconds(run) or 0.0) - sum(spent.values()))
    spent["evaluation"] += evaluation_seconds(run)
    if spent["other"] < 0.01 * sum(spent.values()):
        del spent["other"]
    return _slices(spent, PHASES | {"other": "outside of all phases"}, number_format.seconds)


def training_seconds(run: Run) -> Value:
    """Over all attempts, without evaluations."""
    return run.totals.get("seconds")


def evaluation_seconds(run: Run) -> float:
    return sum(evaluation.seconds or 0.0 for evaluation in run.evaluations)


def work(run: Run) -> list[tuple[str, str, Value]]:
    """Counts of training work: key, name, count."""
    totals = run.totals
    present = {key for key, count in totals.items() if count or (count == 0 and key != "scoring_decodes")}
    return [(key, name, totals[key]) for key, name in WORK.items() if key in present]


def flops_by_kind(run: Run) -> list[Slice]:
    """FLOPs of training; empty if the cost of a row is not known."""
    kinds = _flops(run.totals, run.cost)
    notes = {
        "sampling and reference": "denoiser forwards without a gradient",
        "policy": "denoiser forwards with a gradient",
        "backward": "gradients back through the denoiser",
        "decode": "latents to pictures",
        "scoring decode": "latents to pictures, by the scoring decoder",
        "scoring": "the rewards' own models",
    }
    return _slices(kinds, notes, number_format.flops) if kinds else []


def flops_of(totals: Mapping[str, Value], cost: Mapping[str, float]) -> Value:
    """All FLOPs of some work; None if the cost of a row is not known."""
    return flops(totals, cost) if cost else None


def _flops(totals: Mapping[str, Value], cost: Mapping[str, float]) -> dict[str, float]:
    if not cost:
        return {}
    with_gradient = totals.get("denoiser_forwards_with_gradient") or 0.0
    forward, backward = cost.get("denoiser_forward", 0.0), cost.get("denoiser_backward", 0.0)
    return {
        "sampling and reference": ((totals.get("denoiser_forwards") or 0.0) - with_gradient) * forward,
        "policy": with_gradient * forward,
        "backward": with_gradient * backward,
        "decode": (totals.get("decodes") or 0.0) * cost.get("decode", 0.0),
        "scoring decode": (totals.get("scoring_decodes") or 0.0) * cost.get("scoring_decode", 0.0),
        "scoring": (totals.get("reward_queries") or 0.0) * cost.get("scoring", 0.0),
    }


def _slices(amounts: Mapping[str, float], notes: Mapping[str, str], text: object) -> list[Slice]:
    assert callable(text)
    total = sum(amounts.values())
    if total <= 0:
        return []
    return [
        Slice(key, key, notes.get(key, ""), amount, amount / total, text(amount))
        for key, amount in amounts.items()
        if amount > 0
    ]
