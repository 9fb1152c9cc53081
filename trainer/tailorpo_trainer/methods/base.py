"""The interface of a method: a rollout, the rows to train on, and a loss on rows; and what methods share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.batch_sizes import BatchSizes
from tailorpo_trainer.diffusion.noise import Noise
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.rollout.rows import Pairs, Transitions, concatenate
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.rollout.trajectories import BranchPoint, GuideWinners, sample_branched_trajectories
from tailorpo_trainer.spec.job import Training

Parameter = TypeVar("Parameter")


@dataclass(frozen=True)
class RolloutContext:
    """The inputs of one iteration's rollout, of this process' samples.

    Attributes:
        text: embeddings of each sample's prompt [n, tokens, width].
        prompts: number of each sample's prompt, int64 [n]: equal for equal texts, in every process and attempt.
        trained: indices of the denoising steps to train, ascending.
        progress: share of the iterations that are done, in [0, 1).
        keep_graph: see `sample_branched_trajectories`.
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

    def select(self, rows: slice) -> "RolloutContext":
        """The context of some of the samples."""
        return replace(
            self,
            text=self.text[rows],
            prompts=self.prompts[rows],
            noise=self.noise.select(rows),
            score=self.score.select(rows),
        )


@dataclass(frozen=True)
class Loss:
    """Unweighted losses [n], and per-row metrics [n] without a gradient: `logit`, and `clamped` (share in [0, 1])."""

    losses: Tensor
    metrics: dict[str, Tensor]


def resolved(value: Parameter | None) -> Parameter:
    """A parameter for which `rules.resolve` has filled in the default: defaults are defined only there."""
    assert value is not None, "methods are built from a resolved document"
    return value


class Method(Protocol):
    """A training method.

    needs_gradient: whether the rewards must be differentiable.
    """

    needs_gradient: bool

    def rollout(self, context: RolloutContext) -> Any:
        """Sample and score trajectories. The result has the method's own type; raises what rewards raise."""

    def rows(self, context: RolloutContext, rollout: Any) -> Pairs | Transitions:
        """The rows to train on: all samples of the first trained step, then those of the next."""

    def loss(self, policy: Policy, rows: Any, text: Tensor) -> Loss:
        """Differentiable losses of some rows; text: embeddings of each row's prompt [n, tokens, width]."""

    def end_iteration(self) -> None:
        """Called when all updates on the last `rows` are made: only then may the state change."""

    def state(self) -> dict[str, Tensor]:
        """What later iterations depend on, for checkpoints; the same in all processes."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`, or begin anew from nothing; raises `ValueError` for anything else."""


class Stateless:
    """A method whose iterations do not depend on earlier ones."""

    def end_iteration(self) -> None:
        """Nothing is kept."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"holds {', '.join(sorted(state))}")


def branched_rollout(
    context: RolloutContext, candidates: int, continue_from: str, guide: GuideWinners | None = None
) -> list[BranchPoint]:
    """The rollout of the step-wise methods: see `sample_branched_trajectories`."""
    policy, text, noise, score = context.policy, context.text, context.noise, context.score
    return sample_branched_trajectories(
        policy, text, noise, score, context.trained, candidates, continue_from, guide, context.keep_graph
    )


def best_worst_pairs(branch_points: Sequence[BranchPoint], threshold: float = 0.0) -> Pairs:
    """The best and the worst candidate of each branch point; pairs whose certainty is at most `threshold` weigh 0.

    Their certainty is the difference of the two softmax probabilities of their rewards, tanh(gap / 2), in [0, 1].
    """
    pairs = []
    with_prediction = [branch.prediction is not None for branch in branch_points]
    mixed = any(with_prediction) and not all(with_prediction)
    for branch in branch_points:
        rows = torch.arange(len(branch.x), device=branch.x.device)
        gap = branch.rewards[rows, branch.winner] - branch.rewards[rows, branch.loser]
        pairs.append(
            Pairs(
                sample=rows,
                step=torch.full_like(rows, branch.step),
                x=branch.x,
                winner=branch.target,
                loser=branch.candidates[rows, branch.loser],
                gap=gap,
                weight=((gap > 0) & ((gap / 2).tanh() > threshold)).float(),
                prediction=torch.zeros_like(branch.x) if mixed and branch.prediction is None else branch.prediction,
                kept=torch.full_like(rows, branch.prediction is not None, dtype=torch.bool) if mixed else None,
            )
        )
    return concatenate(pairs)


def predictions(
    policy: Policy, x: Tensor, step: Tensor, text: Tensor, prediction: Tensor | None = None, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The policy's predictions, with a gradient, and the reference model's, without one; both [n, c, h, w].

    prediction, kept: see `Pairs`.
    """
    with policy.reference():
        reference = policy.predict(x, step, text)
    if prediction is None:
        return policy.predict(x, step, text), reference
    if kept is not None and not kept.all():
        lost = ~kept
        prediction = prediction.index_put((lost,), policy.predict(x[lost], step[lost], text[lost]))
    return prediction, reference


def can_keep_graph(training: Training, sizes: BatchSizes, trained: Sequence[int], samples: int) -> bool:
    """Whether the update can use the rollout's predictions: they are exact if there is only one update, and need no
    more memory if all rows fit into one micro-batch. samples: of this process."""
    return training.updates_per_iteration == 1 and samples * len(trained) <= sizes.training


def mean_shift(policy: Policy, x: Tensor, step: Tensor, prediction: Tensor, reference: Tensor) -> Tensor:
    """mu_theta - mu_ref at x, [n, c, h, w]: the mean is affine, so its x terms cancel exactly (see `objectives`)."""
    return policy.sampler.mean(step, torch.zeros_like(x), prediction - reference)
