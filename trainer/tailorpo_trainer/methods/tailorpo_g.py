"""TailorPO-G: TailorPO with the winner pushed up the reward's gradient, after ranking.

    y_w' = y_w - eta grad (target - R(decode(x0hat(y_w))))^2 = y_w + 2 eta (target - r)+ grad r

y_w' is a constant target, compared under the same Gaussians of policy and reference as y_w was drawn from. The
abstract names gradient guidance; this form, and its limit to a fraction of the step's noise, are our choice.
"""

import torch
from torch import Tensor

from tailorpo_trainer.methods.base import RolloutContext, branch_out, given
from tailorpo_trainer.methods.tailorpo import TailorPO
from tailorpo_trainer.rollout.trajectories import Branch
from tailorpo_trainer.spec.job import Method


class TailorPOG(TailorPO):
    """TailorPO on pairs whose winner has been pushed; the reward must be differentiable."""

    needs_gradient = True

    def __init__(self, parameters: Method) -> None:
        super().__init__(parameters)
        self.guidance = given(parameters.reward_guidance)

    def roll_out(self, scene: RolloutContext) -> list[Branch]:
        def push(step: int, winner: Tensor, prediction: Tensor) -> Tensor:
            return winner + self.push(scene, step, winner, prediction)

        return branch_out(scene, 2, self.continue_from, push)

    def push(self, scene: RolloutContext, step: int, winner: Tensor, prediction: Tensor) -> Tensor:
        """The displacement of each winner [n, c, h, w]; prediction: the policy's at the winner, at the next step."""
        size = scene.policy.batch_sizes.training  # a gradient through denoiser and decoder is what needs most memory
        parts = [slice(start, start + size) for start in range(0, len(winner), size)]
        return torch.cat([self._push(scene.part(part), step, winner[part], prediction[part]) for part in parts])

    def _push(self, scene: RolloutContext, step: int, winner: Tensor, prediction: Tensor) -> Tensor:
        policy, guidance = scene.policy, self.guidance
        with torch.enable_grad():
            y = winner.detach().requires_grad_()
            if step + 1 == policy.sampler.steps:
                clean = y
            else:
                ahead = policy.predict(y, step + 1, scene.text) if guidance.gradient == "full" else prediction
                clean = policy.sampler.clean(step + 1, y, ahead)
            reward = scene.score.differentiable(clean, step)
            (gradient,) = torch.autograd.grad(reward.sum(), y)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        noise_length = float(policy.sampler.sigma[step]) * winner[0].numel() ** 0.5
        longest = guidance.fraction * noise_length * self._strength(scene.progress)
        wanted = torch.full_like(length, longest)
        if guidance.target is not None:
            below = (guidance.target - reward.detach()).clamp(min=0)
            if guidance.strength is not None:
                strength = guidance.strength * self._strength(scene.progress)
                wanted = torch.minimum(wanted, 2 * strength * below * length)
            else:
                wanted = torch.where(below > 0, wanted, 0)
        return gradient * (wanted / length).view(-1, *[1] * (winner.dim() - 1))

    def _strength(self, progress: float) -> float:
        return 1.0 if self.guidance.schedule == "constant" else 1.0 - progress
