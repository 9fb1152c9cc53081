"""DDPO with importance sampling (Black et al. 2023), as in its official code.

Whole trajectories are sampled. The final picture's reward, normalised by the last rewards of its prompt (see
`RewardBuffer`), is the advantage of every step in PPO's clipped loss. There is no reference model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.methods import objectives
from tailorpo_trainer.methods.base import Loss, RolloutContext, mean_shift, resolved
from tailorpo_trainer.methods.reward_buffer import RewardBuffer
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
        self._buffer = self._next_buffer = RewardBuffer()

    def rollout(self, context: RolloutContext) -> Trajectories:
        clean, transitions = sample_trajectories(context.policy, context.text, context.noise, context.trained)
        return Trajectories(transitions, context.score(clean, context.policy.sampler.steps - 1))

    def rows(self, context: RolloutContext, rollout: Trajectories) -> Transitions:
        rewards, prompts = context.gather(rollout.rewards), context.gather(context.prompts)
        mine = list(context.noise.samples)
        self._next_buffer = self._buffer.extended(prompts, rewards)
        advantage = self._next_buffer.advantages(prompts, rewards, self.advantage_clip)[mine].to(rewards.device)
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

    def end_iteration(self) -> None:
        self._buffer = self._next_buffer

    def state(self) -> dict[str, Tensor]:
        return self._buffer.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._buffer = self._next_buffer = RewardBuffer.from_state(state)
