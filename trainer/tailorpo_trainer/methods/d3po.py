"""D3PO (Yang et al. 2024), as in its official code.

Two whole trajectories share only their initial noise. The rewards of their final pictures label all of their steps. At
each step the winner and the loser come from different latents, so their gradients do not cancel as TailorPO's do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import Loss, RolloutContext, Stateless, mean_shift, predictions, resolved
from tailorpo_trainer.rollout.rows import Pairs, concatenate
from tailorpo_trainer.rollout.trajectories import Transition, sample_trajectories
from tailorpo_trainer.spec.job import Method


@dataclass(frozen=True)
class TrajectoryPair:
    """The trained transitions of both trajectories, and the rewards of their final pictures [n, 2]."""

    first: list[Transition]
    second: list[Transition]
    rewards: Tensor


class D3PO(Stateless):
    """Preference loss with clamped likelihood ratios, on pairs of steps from different latents."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = resolved(parameters.beta)
        self.reduction = parameters.log_probability
        self.clamp = resolved(parameters.clamp_ratio)

    def rollout(self, context: RolloutContext) -> TrajectoryPair:
        initial = context.noise.initial()
        (clean_first, first), (clean_second, second) = (
            sample_trajectories(context.policy, context.text, context.noise, context.trained, candidate=k, x=initial)
            for k in (0, 1)
        )
        clean = torch.stack([clean_first, clean_second], dim=1).flatten(0, 1)
        rewards = context.score(clean, context.policy.sampler.steps - 1).view(-1, 2)
        return TrajectoryPair(first, second, rewards)

    def rows(self, context: RolloutContext, rollout: TrajectoryPair) -> Pairs:
        difference = rollout.rewards[:, 0] - rollout.rewards[:, 1]
        first_wins = (difference > 0).view(-1, 1, 1, 1)
        samples = torch.arange(len(difference), device=difference.device)
        pairs = [
            Pairs(
                sample=samples,
                step=torch.full_like(samples, first.step),
                x=torch.where(first_wins, first.x, second.x),
                winner=torch.where(first_wins, first.y, second.y),
                loser=torch.where(first_wins, second.y, first.y),
                gap=difference.abs(),
                weight=(difference != 0).float(),
                x_loser=torch.where(first_wins, second.x, first.x),
            )
            for first, second in zip(rollout.first, rollout.second, strict=True)
        ]
        return concatenate(pairs)

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> Loss:
        assert rows.x_loser is not None
        x, y = torch.cat([rows.x, rows.x_loser]), torch.cat([rows.winner, rows.loser])
        step = rows.step.repeat(2)
        prediction, reference = predictions(policy, x, step, text.repeat(2, 1, 1))
        mean = policy.sampler.mean(step, x, reference)
        shift = mean_shift(policy, x, step, prediction, reference)
        delta = objectives.log_ratio(y, mean, shift, policy.sampler.noise_level(step, x), self.reduction)
        limited = objectives.clamp_log_ratio(delta, self.clamp)
        winner, loser = limited.chunk(2)
        logit = self.beta * (winner - loser)
        clamped = (limited != delta).float().view(2, -1).mean(0)
        return Loss(objectives.preference_loss(logit), {"logit": logit.detach(), "clamped": clamped})
