"""What every method is: a rollout, a way to make rows of it, and a loss on rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.batch_sizes import BatchSizes
from tailorpo_trainer.diffusion.noise import Noise
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.rollout.rows import Pairs, Transitions
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.rollout.trajectories import Branch, Push, branch
from tailorpo_trainer.spec.job import Training

Parameter = TypeVar("Parameter")


@dataclass(frozen=True)
class RolloutContext:
    """All that one iteration's rollout needs.

    Attributes:
        text: embeddings of each sample's prompt [n, tokens, width].
        prompts: index of each sample's prompt, int64 [n].
        trained: indices of the denoising steps to train, ascending.
        progress: share of the iterations that are done, in [0, 1).
        keep_graph: see `rollout.branch`.
        gather: rows of this process' samples [n, ...] -> those of all processes' samples, in the samples' order.
    """

    policy: Policy
    text: Tensor
    prompts: Tensor
    noise: Noise
    score: Scorer
    trained: Sequence[int]
    progress: float = 0.0
    keep_graph: bool = False
    gather: Callable[[Tensor], Tensor] = lambda rows: rows

    def part(self, rows: slice) -> "RolloutContext":
        """The scene of some of the samples."""
        return replace(
            self,
            text=self.text[rows],
            prompts=self.prompts[rows],
            noise=self.noise.rows(rows),
            score=self.score.part(rows),
        )


@dataclass(frozen=True)
class Loss:
    """Unweighted losses [n], and facts about the rows [n] that are worth watching: logit, clamped."""

    losses: Tensor
    facts: dict[str, Tensor]


def given(value: Parameter | None) -> Parameter:
    """A parameter that `rules.resolve` has written out: the defaults stand there and nowhere else."""
    assert value is not None, "methods are built from a resolved document"
    return value


class Method(Protocol):
    """A composition of rollout, score, next, pair, objective and guidance; stateless, so nothing of it is saved."""

    needs_gradient: bool

    def roll_out(self, scene: RolloutContext) -> Any:
        """Draw and score; what comes back is the method's own and goes to `rows`."""

    def rows(self, scene: RolloutContext, drawn: Any) -> Pairs | Transitions:
        """Rows to train on, step-major."""

    def loss(self, policy: Policy, rows: Any, text: Tensor) -> Loss:
        """Differentiable losses of some rows; text [n, tokens, width] of each row."""


def branch_out(scene: RolloutContext, candidates: int, continue_from: str, push: Push | None = None) -> list[Branch]:
    """The step-wise methods' rollout of a scene: `rollout.branch`."""
    return branch(
        scene.policy,
        scene.text,
        scene.noise,
        scene.score,
        scene.trained,
        candidates,
        continue_from,
        push,
        scene.keep_graph,
    )


def best_against_worst(branches: Sequence[Branch], threshold: float = 0.0) -> Pairs:
    """The pair of each branch; one whose gap is 0 or below the threshold weighs 0."""
    pairs = []
    with_prediction = [drawn.prediction is not None for drawn in branches]
    mixed = any(with_prediction) and not all(with_prediction)
    for drawn in branches:
        rows = torch.arange(len(drawn.x), device=drawn.x.device)
        gap = drawn.rewards[rows, drawn.winner] - drawn.rewards[rows, drawn.loser]
        pairs.append(
            Pairs(
                sample=rows,
                step=torch.full_like(rows, drawn.step),
                x=drawn.x,
                winner=drawn.target,
                loser=drawn.candidates[rows, drawn.loser],
                gap=gap,
                weight=((gap > 0) & (gap >= threshold)).float(),
                prediction=torch.zeros_like(drawn.x) if mixed and drawn.prediction is None else drawn.prediction,
                kept=torch.full_like(rows, drawn.prediction is not None, dtype=torch.bool) if mixed else None,
            )
        )
    joined = {
        name: torch.cat([getattr(pair, name) for pair in pairs])
        for name in Pairs.__dataclass_fields__
        if getattr(pairs[0], name) is not None
    }
    return Pairs(**joined)


def predictions(
    policy: Policy,
    x: Tensor,
    step: Tensor,
    text: Tensor,
    prediction: Tensor | None = None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The policy's predictions, with a gradient, and the reference's, without; both [n, c, h, w].

    prediction, kept: see `Pairs`.
    """
    with policy.reference():
        reference = policy.predict(x, step, text)
    if prediction is None:
        return policy.predict(x, step, text), reference
    if kept is not None and not kept.all():
        again = ~kept
        prediction = prediction.index_put((again,), policy.predict(x[again], step[again], text[again]))
    return prediction, reference


def can_keep_graph(training: Training, at_once: BatchSizes, trained: Sequence[int], samples: int) -> bool:
    """Whether the rollout's predictions can serve the update: exact while nothing was updated in between, and no dearer
    in memory if all rows fit one pass anyway."""
    return training.updates_per_iteration == 1 and samples * len(trained) <= at_once.training


def mean_shift(policy: Policy, x: Tensor, step: Tensor, prediction: Tensor, reference: Tensor) -> Tensor:
    """mu_theta - mu_ref at x: the sampler's mean is affine, so its x terms cancel exactly."""
    return policy.sampler.mean(step, torch.zeros_like(x), prediction - reference)
