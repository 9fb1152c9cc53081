"""DDPO with importance sampling (Black et al. 2023), as in its official code.

Whole trajectories; the final picture's reward, normalised within each prompt, is the advantage of every step; PPO's
clipped loss. No reference model. Official code keeps each prompt's last 32 rewards for the normalisation; here an
iteration's own samples of the prompt serve (`training.samplesPerPrompt`), so that there is no state to resume.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import Loss, RolloutContext, given, mean_shift
from tailorpo_trainer.rollout.rows import Transitions
from tailorpo_trainer.rollout.trajectories import Transition, follow
from tailorpo_trainer.spec.job import Method


@dataclass(frozen=True)
class Trajectories:
    """The trained transitions, and the rewards of the final pictures [n]."""

    transitions: list[Transition]
    rewards: Tensor


class DDPO:
    """Final reward as advantage of each transition, clipped likelihood ratio."""

    needs_gradient = False

    def __init__(self, parameters: Method) -> None:
        self.reduction = parameters.log_probability
        self.clip_range = given(parameters.clip_range)
        self.advantage_clip = given(parameters.advantage_clip)

    def roll_out(self, scene: RolloutContext) -> Trajectories:
        clean, transitions = follow(scene.policy, scene.text, scene.noise, scene.trained)
        return Trajectories(transitions, scene.score(clean, scene.policy.sampler.steps - 1))

    def rows(self, scene: RolloutContext, drawn: Trajectories) -> Transitions:
        rewards, prompts = scene.gather(drawn.rewards), scene.gather(scene.prompts)
        mine = list(scene.noise.samples)
        advantage = objectives.normalised_advantages(rewards, prompts, self.advantage_clip)[mine]
        samples = torch.arange(len(advantage), device=advantage.device)
        steps = drawn.transitions
        return Transitions(
            sample=samples.repeat(len(steps)),
            step=torch.cat([torch.full_like(samples, transition.step) for transition in steps]),
            x=torch.cat([transition.x for transition in steps]),
            y=torch.cat([transition.y for transition in steps]),
            prediction=torch.cat([transition.prediction for transition in steps]),
            advantage=advantage.repeat(len(steps)),
            weight=torch.ones(len(samples) * len(steps), device=advantage.device),
        )

    def loss(self, policy: Policy, rows: Transitions, text: Tensor) -> Loss:
        prediction = policy.predict(rows.x, rows.step, text)
        mean = policy.sampler.mean(rows.step, rows.x, rows.prediction)
        shift = mean_shift(policy, rows.x, rows.step, prediction, rows.prediction)
        sigma = policy.sampler.noise_level(rows.step, rows.x)
        delta = objectives.log_ratio(rows.y, mean, shift, sigma, self.reduction)
        losses = objectives.clipped_surrogate(delta, rows.advantage, self.clip_range)
        clamped = (delta.detach().exp() - 1).abs().gt(self.clip_range).float()
        return Loss(losses, {"logit": delta.detach(), "clamped": clamped})
