"""The plan of the comparison: the trials, their documents and their lengths, with equal effort for every method."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from tailorpo_trainer import document
from tailorpo_trainer.spec.job import TailorPOJob

Setting = tuple[float, float | None]
"""Learning rate and beta."""

METHODS = ("tailorpo", "tailorpo-g", "spo", "d3po", "ddpo")
REWARDS = ("colourfulness", "clip-score")
"""Each is maximised alone while the other is watched; both have gradients, which `tailorpo-g` needs."""

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BETAS = (0.1, 10.0)
"""Every method's default is one of these. Tried with each learning rate."""
DDPO_LEARNING_RATES = (1e-3, 1.6e-3, 2.6e-3, 4.3e-3, 7e-3, 1.1e-2, 1.8e-2, 3e-2)
"""DDPO has no beta, and with one update an iteration its clip range has no effect, so it gets more learning rates."""

TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)

TUNING_BUDGET, BUDGET = 1.5e12, 2.0e12
"""FLOPs of training in a tuning run and in a final run, without evaluations."""
SPOILT = 0.05
"""A setting is not chosen if the judge's accuracy falls by more than this share in its tuning run."""
PROMPTS, IMAGES = 4, 8
"""Prompts and trajectories of one iteration, for every method; a pair of D3PO is two trajectories."""
POINTS = 5
"""About how many evaluations a final run has after the first; they cost more than the iterations of some methods."""
EVALUATED = 30
"""Pictures of one evaluation: five of each held-out prompt. A run stores 32, so the judge gets all of them."""


@dataclass(frozen=True)
class Trial:
    """One run. stage: `tuning` or `final`."""

    stage: str
    reward: str
    method: str
    learning_rate: float
    beta: float | None
    seed: int

    @property
    def key(self) -> str:
        """A unique name of the trial."""
        beta = "" if self.beta is None else f"/beta={self.beta:g}"
        return f"{self.stage}/{self.reward}/{self.method}/lr={self.learning_rate:g}{beta}/seed={self.seed}"

    @property
    def budget(self) -> float:
        """FLOPs of training."""
        return BUDGET if self.stage == "final" else TUNING_BUDGET


def settings(method: str) -> list[Setting]:
    """The tuning grid of a method, which is equally large for all methods."""
    if method == "ddpo":
        return [(rate, None) for rate in DDPO_LEARNING_RATES]
    return [(rate, beta) for beta in BETAS for rate in LEARNING_RATES]


def tuning() -> Iterator[Trial]:
    """The tuning trials of the grid; methods and rewards alternate."""
    grids = {method: settings(method) for method in METHODS}
    for number in range(len(grids[METHODS[0]])):
        for reward in REWARDS:
            for method in METHODS:
                yield Trial("tuning", reward, method, *grids[method][number], TUNING_SEED)


def finer(method: str, rate: float) -> tuple[float, float]:
    """Learning rates half-way to both neighbours in a method's grid, on a logarithmic scale, rounded to two digits."""
    rates = DDPO_LEARNING_RATES if method == "ddpo" else LEARNING_RATES
    step = (rates[-1] / rates[0]) ** (0.5 / (len(rates) - 1))
    return float(f"{rate / step:.2g}"), float(f"{rate * step:.2g}")


def refinement(chosen: Mapping[tuple[str, str], Setting]) -> Iterator[Trial]:
    """Two more tuning trials for each reward and method, around the best of the grid."""
    for (reward, method), (rate, beta) in chosen.items():
        for near in finer(method, rate):
            yield Trial("tuning", reward, method, near, beta, TUNING_SEED)


def finals(chosen: Mapping[tuple[str, str], Setting]) -> Iterator[Trial]:
    """All final trials, seed by seed. chosen: learning rate and beta of each reward and method."""
    for seed in SEEDS:
        for reward in REWARDS:
            for method in METHODS:
                yield Trial("final", reward, method, *chosen[reward, method], seed)


def iterations(budget: float, flops: float) -> int:
    """The smallest number of iterations that uses up a budget. flops: of one iteration."""
    return max(1, ceil(budget / flops))


def job(trial: Trial, count: int, model: str = "tiny-animals", images: int = EVALUATED) -> TailorPOJob:
    """The document of a trial of `count` iterations, otherwise with each method's defaults."""
    (watched,) = (name for name in REWARDS if name != trial.reward)
    every = count if trial.stage == "tuning" else ceil(count / POINTS)
    method: dict[str, Any] = {"name": trial.method} | ({} if trial.beta is None else {"beta": trial.beta})
    per_sample = 2 if trial.method == "d3po" else 1
    return document.parse(
        {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": f"{trial.stage}-{trial.method}"},
            "spec": {
                "model": {"name": model},
                "lora": {"rank": 8, "alpha": 8},
                "prompts": {"builtin": "tiny-animals"},
                "rewards": [{"name": trial.reward}],
                "method": method,
                "sampling": {"steps": 10, "guidanceScale": 3.0},
                "optimizer": {"learningRate": trial.learning_rate},
                "training": {
                    "iterations": count,
                    "promptsPerIteration": PROMPTS,
                    "samplesPerPrompt": IMAGES // PROMPTS // per_sample,
                    "seed": trial.seed,
                    "precision": "fp32",
                },
                "evaluation": {
                    "everyIterations": every,
                    "images": images,
                    "prompts": {"builtin": "tiny-animals-held-out"},
                    "rewards": [{"name": watched}],
                },
                "checkpoint": {"everyIterations": count},
            },
        }
    )
