"""Measure a policy on prompts and noise that training never sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.noise import Noise, Purpose
from tailorpo_trainer.policy import Policy
from tailorpo_trainer.rewards.combine import RewardSum
from tailorpo_trainer.rollout import follow


@dataclass(frozen=True)
class Measurement:
    """Scores of n pictures, in the order of their noise, so that two policies compare picture by picture.

    Attributes:
        reward: the weighted sum that is maximised [n]. parts: each raw score by name [n].
        diversity: mean RMS difference (pixels in [0, 1]) between pictures of one prompt; None if no prompt has two.
        pictures: the first few [m, 3, H, W], in [0, 1].
    """

    prompts: list[str]
    reward: Tensor
    parts: dict[str, Tensor]
    diversity: float | None
    pictures: Tensor


@torch.no_grad()
def draw(
    policy: Policy, prompts: Sequence[str], count: int, seed: int, batch: int = 64, purpose: Purpose = Purpose.EVALUATION
) -> tuple[list[str], Tensor]:
    """`count` pictures [count, 3, H, W] on the CPU over the prompts in turn, and the prompt of each."""
    wanted = [prompts[n % len(prompts)] for n in range(count)]
    pictures = []
    for start in range(0, count, batch):
        samples = range(start, min(count, start + batch))
        noise = Noise((seed, purpose, 0), samples, policy.latent_shape, policy.device)
        clean, _ = follow(policy, policy.embed([wanted[n] for n in samples]), noise)
        pictures.append(policy.decode(clean).cpu())
    return wanted, torch.cat(pictures)


@torch.no_grad()
def measure(
    policy: Policy,
    reward: RewardSum,
    watched: RewardSum | None,
    prompts: Sequence[str],
    count: int,
    seed: int,
    batch: int = 64,
    keep: int = 32,
) -> Measurement:
    """Draw `count` pictures and score them by the rewards that are maximised and those that are only watched."""
    wanted, pictures = draw(policy, prompts, count, seed, batch)
    scores = reward(pictures.to(policy.device), wanted)
    parts = dict(scores.parts)
    if watched is not None:
        for name, part in watched(pictures.to(policy.device), wanted).parts.items():
            parts.setdefault(name, part)
    return Measurement(
        prompts=wanted,
        reward=scores.total.cpu(),
        parts={name: part.cpu() for name, part in parts.items()},
        diversity=diversity(pictures, wanted),
        pictures=pictures[:keep],
    )


def diversity(pictures: Tensor, prompts: Sequence[str]) -> float | None:
    """Mean RMS difference between all pairs of pictures of one prompt, averaged over prompts with at least two.

    Model-free: it falls when a policy collapses onto one picture, whatever that shows. Pictures are compared at 32 x 32.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(pictures, 32) if pictures.shape[-1] > 32 else pictures
    spreads = []
    for prompt in dict.fromkeys(prompts):
        mine = small[[n for n, other in enumerate(prompts) if other == prompt]].flatten(1)
        if len(mine) > 1:
            spreads.append(float((torch.pdist(mine) / mine.shape[1] ** 0.5).mean()))
    return sum(spreads) / len(spreads) if spreads else None
