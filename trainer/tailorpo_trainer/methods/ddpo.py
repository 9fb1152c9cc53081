"""DDPO with importance sampling (Black et al. 2023), as in its official code.

Whole trajectories are sampled. The final picture's reward, normalised within each prompt, is the advantage of every
step in PPO's clipped loss. There is no reference model. The official code normalises by each prompt's last 32 rewards;
here it is the iteration's samples of the prompt (`training.samplesPerPrompt`), so that there is no state to resume.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import Loss, RolloutContext, mean_shift, resolved
from tailorpo_trainer.rollout.rows import Transitions, concatenate
from tailorpo_trainer.rollout.trajectories import Transition, sample_trajectories
from tailorpo_trainer.spec.job import Method


@dataclass(frozen=True)
class Trajectories:
    """The trained transitions, and the rewards of the final pictures [n]."""

    transitions: list[Transition]
    rewards: Tensor


class DDPO:
    """Policy gradient with clipped likelihood ratios; the final reward is each transition's advantage."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.reduction = parameters.log_probability
        self.clip_range = resolved(parameters.clip_range)
        self.advantage_clip = resolved(parameters.advantage_clip)

    def rollout(self, context: RolloutContext) -> Trajectories:
        clean, transitions = sample_trajectories(context.policy, context.text, context.noise, context.trained)
        return Trajectories(transitions, context.score(clean, context.policy.sampler.steps - 1))

    def rows(self, context: RolloutContext, rollout: Trajectories) -> Transitions:
        rewards, prompts = context.gather(rollout.rewards), context.gather(context.prompts)
        mine = list(context.noise.samples)
        advantage = objectives.normalised_advantages(rewards, prompts, self.advantage_clip)[mine]
        samples = torch.arange(len(advantage), device=advantage.device)
        weight = torch.ones(len(samples), device=advantage.device)
        steps = [
            Transitions(samples, torch.full_like(samples, t.step), t.x, t.y, t.prediction, advantage, weight)
            for t in rollout.transitions
        ]
        return concatenate(steps)

    def loss(self, policy: Policy, rows: Transitions, text: Tensor) -> Loss:
        prediction = policy.predict(rows.x, rows.step, text)
        mean = policy.sampler.mean(rows.step, rows.x, rows.prediction)
        shift = mean_shift(policy, rows.x, rows.step, prediction, rows.prediction)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        delta = objectives.log_ratio(rows.y, mean, shift, sigma, self.reduction)
        losses = objectives.clipped_surrogate(delta, rows.advantage, self.clip_range)
        clamped = (delta.detach().exp() - 1).abs().gt(self.clip_range).float()
        return Loss(losses, {"logit": delta.detach(), "clamped": clamped})
