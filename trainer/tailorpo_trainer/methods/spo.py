"""SPO, step-by-step preference optimisation (Liang et al. 2024), as in its official code.

k next latents from one latent, the best against the worst by a step-wise score, kept where their gap reaches a
threshold; likelihood ratios clamped; the trajectory goes on from a random candidate, so that it stays the policy's
own distribution.
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


class SPO:
    """Best and worst of k candidates, clamped preference loss, random continuation."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.beta = given(parameters.beta)
        self.reduction = parameters.log_probability
        self.candidates = given(parameters.candidates)
        self.threshold = given(parameters.threshold)
        self.clamp = given(parameters.clamp_ratio)
        self.continue_from = given(parameters.continue_from)

    def roll_out(self, scene: RolloutContext) -> list[Branch]:
        return branch_out(scene, self.candidates, self.continue_from)

    def rows(self, scene: RolloutContext, drawn: list[Branch]) -> Pairs:
        return best_against_worst(drawn, self.threshold)

    def loss(self, policy: Policy, rows: Pairs, text: Tensor) -> Loss:
        ours, reference = predictions(policy, rows.x, rows.step, text, rows.prediction, rows.kept)
        mean = policy.sampler.mean(rows.step, rows.x, reference)
        shift = mean_shift(policy, rows.x, rows.step, ours, reference)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        deltas = [objectives.log_ratio(y, mean, shift, sigma, self.reduction) for y in (rows.winner, rows.loser)]
        won, lost = (objectives.clamp_log_ratio(delta, self.clamp) for delta in deltas)
        logit = self.beta * (won - lost)
        clamped = ((won != deltas[0]).float() + (lost != deltas[1]).float()) / 2
        return Loss(objectives.preference_loss(logit), {"logit": logit.detach(), "clamped": clamped})
