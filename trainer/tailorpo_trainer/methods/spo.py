"""SPO, step-by-step preference optimisation (Liang et al. 2024), as in its official code.

From one latent, k candidates are sampled. The best and the worst by a step-wise score are a pair if the difference of
their softmax probabilities is above a threshold: the scores count as logits. Likelihood ratios are clamped. The
trajectory continues from a random candidate, so that its latents keep the policy's own distribution.
"""

from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import base, objectives
from tailorpo_trainer.rollout.rows import Pairs
from tailorpo_trainer.rollout.trajectories import BranchPoint
from tailorpo_trainer.spec.job import Method


class SPO(base.Stateless):
    """Preference loss with clamped likelihood ratios, on the best and the worst of k candidates."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = base.resolved(parameters.beta)
        self.reduction = parameters.log_probability
        self.candidates = base.resolved(parameters.candidates)
        self.threshold = base.resolved(parameters.threshold)
        self.clamp = base.resolved(parameters.clamp_ratio)
        self.continue_from = base.resolved(parameters.continue_from)

    def rollout(self, context: base.RolloutContext) -> list[BranchPoint]:
        return base.branched_rollout(context, self.candidates, self.continue_from)

    def rows(self, context: base.RolloutContext, rollout: list[BranchPoint]) -> Pairs:
        return base.best_worst_pairs(rollout, self.threshold)

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> base.Loss:
        prediction, reference = base.predictions(policy, rows.x, rows.step, text, rows.prediction, rows.kept)
        mean = policy.sampler.mean(rows.step, rows.x, reference)
        shift = base.mean_shift(policy, rows.x, rows.step, prediction, reference)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        deltas = [objectives.log_ratio(y, mean, shift, sigma, self.reduction) for y in (rows.winner, rows.loser)]
        winner, loser = (objectives.clamp_log_ratio(delta, self.clamp) for delta in deltas)
        logit = self.beta * (winner - loser)
        clamped = ((winner != deltas[0]).float() + (loser != deltas[1]).float()) / 2
        return base.Loss(objectives.preference_loss(logit), {"logit": logit.detach(), "clamped": clamped})
