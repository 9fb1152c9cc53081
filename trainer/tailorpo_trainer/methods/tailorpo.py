"""TailorPO (Ren et al. 2025, arXiv 2502.01667), from the paper's abstract.

At each trained step, two candidates are sampled from the same latent and ranked by the reward of the picture that each
leads to (its x0hat, from one denoiser call at the next timestep). The pair is trained by a DPO-style loss against the
frozen reference model. With one shared input the gradient is -(w / sigma^2) J(x)^T (y_w - y_l): to first order the
mean never moves against the preferred direction.

Not in the abstract, and therefore options: which candidate the trajectory continues from, and which steps are trained.
"""

from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import base, objectives
from tailorpo_trainer.rollout.rows import Pairs
from tailorpo_trainer.rollout.trajectories import BranchPoint
from tailorpo_trainer.spec.job import Method


class TailorPO(base.Stateless):
    """Preference loss in closed form, on two candidates from one latent."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = base.resolved(parameters.beta)
        self.reduction = parameters.log_probability
        self.continue_from = base.resolved(parameters.continue_from)

    def rollout(self, context: base.RolloutContext) -> list[BranchPoint]:
        return base.branched_rollout(context, 2, self.continue_from)

    def rows(self, context: base.RolloutContext, rollout: list[BranchPoint]) -> Pairs:
        return base.best_worst_pairs(rollout)

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> base.Loss:
        prediction, reference = base.predictions(policy, rows.x, rows.step, text, rows.prediction, rows.kept)
        shift = base.mean_shift(policy, rows.x, rows.step, prediction, reference)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        logit = objectives.shared_logit(rows.winner, rows.loser, shift, sigma, self.beta, self.reduction)
        return base.Loss(objectives.preference_loss(logit), {"logit": logit.detach()})
