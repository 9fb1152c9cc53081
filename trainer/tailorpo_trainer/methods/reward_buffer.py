"""The last rewards of each prompt, by which DDPO normalises, as in its official code (kvablack/ddpo-pytorch)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

LENGTH, ENOUGH = 32, 16
"""Rewards kept of each prompt, and how many of them it needs to have statistics of its own."""


@dataclass(frozen=True)
class RewardBuffer:
    """A prompt's last `LENGTH` rewards, oldest first, by the number of its text (`prompts.number`)."""

    rewards: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def extended(self, prompts: Tensor, rewards: Tensor) -> "RewardBuffer":
        """The buffer after an iteration's rewards. prompts: int64 [n]. rewards: float32 [n], of all processes."""
        kept = dict(self.rewards)
        for prompt, reward in zip(prompts.tolist(), rewards.tolist(), strict=True):
            kept[prompt] = (*kept.get(prompt, ()), reward)[-LENGTH:]
        return RewardBuffer(kept)

    def advantages(self, prompts: Tensor, rewards: Tensor, clip: float) -> Tensor:
        """(r - mean) / std of an iteration's rewards, clipped to [-clip, clip], float32 [n] on the CPU.

        Mean and deviation are those of the prompt's rewards in this buffer, which holds the iteration's already, or of
        all rewards of the iteration where the prompt has fewer than `ENOUGH`.
        """
        everything = rewards.double().cpu()
        advantages = torch.empty_like(everything)
        for prompt in dict.fromkeys(prompts.tolist()):
            rows = (prompts == prompt).cpu()
            own = self.rewards[prompt]
            known = torch.tensor(own, dtype=torch.float64) if len(own) >= ENOUGH else everything
            # A smaller deviation is rounding error, which the division would amplify.
            floor = 1e-6 * float(known.abs().max()) + 1e-8
            advantages[rows] = (everything[rows] - known.mean()) / (known.std(correction=0) + floor)
        return advantages.clamp(-clip, clip).float()

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: `prompts` int64 [m], `counts` int64 [m], `rewards` float32 [m, LENGTH], padded with 0."""
        rewards = torch.zeros(len(self.rewards), LENGTH)
        for row, values in zip(rewards, self.rewards.values(), strict=True):
            row[: len(values)] = torch.tensor(values)
        counts = [len(values) for values in self.rewards.values()]
        return {
            "prompts": torch.tensor(list(self.rewards), dtype=torch.int64),
            "counts": torch.tensor(counts, dtype=torch.int64),
            "rewards": rewards,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "RewardBuffer":
        """The inverse of `state`; an empty buffer from nothing, which is what older checkpoints hold.

        Raises `ValueError` for anything else.
        """
        if not state:
            return cls()
        if state.keys() != {"prompts", "counts", "rewards"}:
            raise ValueError(f"holds {', '.join(sorted(state))}")
        prompts, counts, rewards = state["prompts"], state["counts"], state["rewards"]
        whole = prompts.dtype == counts.dtype == torch.int64 and rewards.dtype == torch.float32
        if not whole or prompts.dim() != 1 or counts.shape != prompts.shape or rewards.shape != (len(prompts), LENGTH):
            raise ValueError("a tensor has another type or shape")
        if not (bool(((counts >= 1) & (counts <= LENGTH)).all()) and bool(rewards.isfinite().all())):
            raise ValueError("a count or a reward is out of range")
        rows = zip(prompts.tolist(), counts.tolist(), rewards.tolist(), strict=True)
        return cls({prompt: tuple(values[:count]) for prompt, count, values in rows})
