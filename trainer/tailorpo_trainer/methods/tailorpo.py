"""TailorPO (Ren et al. 2025, arXiv 2502.01667), from the paper's abstract.

At each trained step, draw two next latents from the same latent, rank them by the reward of the picture that each
leads to (its x0hat, from one denoiser call at the next timestep), and train on the pair by a DPO-style loss against
the frozen base model. With one shared input the gradient is -(w / sigma^2) J(x)^T (y_w - y_l): to first order the
mean never moves against the preferred direction.

Not in the abstract, so switches: the trajectory goes on from the winner; which steps are trained.
"""

from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import (
    Loss,
    RolloutContext,
    best_against_worst,
    branch_out,
    given,
    mean_shift,
    predictions,
)
from tailorpo_trainer.rollout.rows import Pairs
from tailorpo_trainer.rollout.trajectories import Branch
from tailorpo_trainer.spec.job import Method


class TailorPO:
    """Two candidates from one latent, step-wise reward, closed-form preference loss."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = given(parameters.beta)
        self.reduction = parameters.log_probability
        self.continue_from = given(parameters.continue_from)

    def roll_out(self, scene: RolloutContext) -> list[Branch]:
        return branch_out(scene, 2, self.continue_from)

    def rows(self, scene: RolloutContext, drawn: list[Branch]) -> Pairs:
        return best_against_worst(drawn)

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> Loss:
        ours, reference = predictions(policy, rows.x, rows.step, text, rows.prediction, rows.kept)
        shift = mean_shift(policy, rows.x, rows.step, ours, reference)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        logit = objectives.shared_logit(rows.winner, rows.loser, shift, sigma, self.beta, self.reduction)
        return Loss(objectives.preference_loss(logit), {"logit": logit.detach()})
