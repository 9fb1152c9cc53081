"""TailorPO-G: TailorPO whose winner is moved along the gradient of the reward, after ranking.

    y_w' = y_w - eta grad (target - R(decode(x0hat(y_w))))^2 = y_w + 2 eta (target - r)+ grad r

The loss treats y_w' as a constant, with the same Gaussians of policy and reference as for y_w. The paper's abstract
names gradient guidance; this form, and its limit to a fraction of the step's noise, are our choice.
"""

import torch
from torch import Tensor

from tailorpo_trainer.methods.base import RolloutContext, branched_rollout, resolved
from tailorpo_trainer.methods.tailorpo import TailorPO
from tailorpo_trainer.rollout.trajectories import BranchPoint
from tailorpo_trainer.spec.job import Method


class TailorPOG(TailorPO):
    """TailorPO on pairs whose winner is guided by the reward gradient; the reward must be differentiable."""

    needs_gradient = True

    def __init__(self, parameters: Method) -> None:
        super().__init__(parameters)
        self.guidance = resolved(parameters.reward_guidance)

    def rollout(self, context: RolloutContext) -> list[BranchPoint]:
        def guide(step: int, winner: Tensor, prediction: Tensor) -> Tensor:
            return winner + self.displacement(context, step, winner, prediction)

        return branched_rollout(context, 2, self.continue_from, guide)

    def displacement(self, context: RolloutContext, step: int, winner: Tensor, prediction: Tensor) -> Tensor:
        """2 eta (target - r)+ grad r of each winner [n, c, h, w]; prediction: the policy's at the winner, at step+1."""
        size = context.policy.batch_sizes.training  # a gradient through denoiser and decoder needs the most memory
        batches = [slice(start, start + size) for start in range(0, len(winner), size)]
        return torch.cat([self._displacement(context.select(b), step, winner[b], prediction[b]) for b in batches])

    def _displacement(self, context: RolloutContext, step: int, winner: Tensor, prediction: Tensor) -> Tensor:
        policy, guidance = context.policy, self.guidance
        with torch.enable_grad():
            y = winner.detach().requires_grad_()
            if step + 1 == policy.sampler.steps:
                clean = y
            else:
                if guidance.gradient == "full":
                    prediction = policy.predict(y, step + 1, context.text)
                clean = policy.sampler.clean(step + 1, y, prediction)
            reward, gradient = context.score.gradient(clean, step, y)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        noise_norm = float(policy.sampler.sigma[step]) * winner[0].numel() ** 0.5
        limit = guidance.fraction * noise_norm * self._schedule(context.progress)
        wanted = torch.full_like(norm, limit)
        if guidance.target is not None:
            below = (guidance.target - reward).clamp(min=0)
            if guidance.strength is not None:
                strength = guidance.strength * self._schedule(context.progress)
                wanted = torch.minimum(wanted, 2 * strength * below * norm)
            else:
                wanted = torch.where(below > 0, wanted, 0)
        return gradient * (wanted / norm).view(-1, *[1] * (winner.dim() - 1))

    def _schedule(self, progress: float) -> float:
        return 1.0 if self.guidance.schedule == "constant" else 1.0 - progress
