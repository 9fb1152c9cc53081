"""D3PO (Yang et al. 2024), as in its official code.

Two whole trajectories that share only the initial noise; the reward of the final pictures labels every one of their
steps. The two sides of a pair start from different latents, so their gradients do not cancel as TailorPO's do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import Loss, RolloutContext, given, mean_shift, predictions
from tailorpo_trainer.rollout.rows import Pairs
from tailorpo_trainer.rollout.trajectories import Transition, follow
from tailorpo_trainer.spec.job import Method


@dataclass(frozen=True)
class Duel:
    """Both trajectories' trained transitions, and the rewards of their pictures [n, 2]."""

    first: list[Transition]
    second: list[Transition]
    rewards: Tensor


class D3PO:
    """Final reward, pairs of steps from different latents, clamped preference loss."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = given(parameters.beta)
        self.reduction = parameters.log_probability
        self.clamp = given(parameters.clamp_ratio)

    def roll_out(self, scene: RolloutContext) -> Duel:
        start = scene.noise.initial()
        (clean_a, a), (clean_b, b) = (
            follow(scene.policy, scene.text, scene.noise, scene.trained, candidate=k, x=start) for k in (0, 1)
        )
        rewards = scene.score(
            torch.stack([clean_a, clean_b], dim=1).flatten(0, 1), scene.policy.sampler.steps - 1
        ).view(-1, 2)
        return Duel(a, b, rewards)

    def rows(self, scene: RolloutContext, drawn: Duel) -> Pairs:
        difference = drawn.rewards[:, 0] - drawn.rewards[:, 1]
        first_wins = (difference > 0).view(-1, 1, 1, 1)
        samples = torch.arange(len(difference), device=difference.device)
        parts = [
            Pairs(
                sample=samples,
                step=torch.full_like(samples, a.step),
                x=torch.where(first_wins, a.x, b.x),
                winner=torch.where(first_wins, a.y, b.y),
                loser=torch.where(first_wins, b.y, a.y),
                gap=difference.abs(),
                weight=(difference != 0).float(),
                x_loser=torch.where(first_wins, b.x, a.x),
            )
            for a, b in zip(drawn.first, drawn.second, strict=True)
        ]
        names = [name for name in Pairs.__dataclass_fields__ if name not in ("prediction", "kept")]
        return Pairs(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> Loss:
        assert rows.x_loser is not None
        x, y = torch.cat([rows.x, rows.x_loser]), torch.cat([rows.winner, rows.loser])
        step = rows.step.repeat(2)
        ours, reference = predictions(policy, x, step, text.repeat(2, 1, 1))
        mean = policy.sampler.mean(step, x, reference)
        shift = mean_shift(policy, x, step, ours, reference)
        delta = objectives.log_ratio(y, mean, shift, policy.sampler.noise_level(step, x), self.reduction)
        kept = objectives.clamp_log_ratio(delta, self.clamp)
        won, lost = kept.chunk(2)
        logit = self.beta * (won - lost)
        clamped = (kept != delta).float().view(2, -1).mean(0)
        return Loss(objectives.preference_loss(logit), {"logit": logit.detach(), "clamped": clamped})
