"""The losses, as functions of means and samples: no model, no loop.

A next latent's density under policy and reference differs only in the mean, so everything follows from
`shift` = mu_theta - mu_ref (DDPO: mu_theta - mu_old), which is the sampler's mean_m times the difference of two
predictions: the large common term A x never enters, and nothing cancels in fp32.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def reduce(values: Tensor, how: str) -> Tensor:
    """[n, ...] -> [n] by `mean` or `sum` over a latent's elements."""
    flat = values.flatten(1)
    return flat.mean(1) if how == "mean" else flat.sum(1)


def shared_logit(winner: Tensor, loser: Tensor, shift: Tensor, sigma: Tensor, beta: float, how: str) -> Tensor:
    """beta [Delta(y_w | x) - Delta(y_l | x)] for two next latents of one x: beta (y_w - y_l) . shift / sigma^2.

    One forward with a gradient and one without replace four log-probabilities. Arguments [n, ...], sigma
    broadcasting over them; returns [n]. Derived in `docs/methods.md`; tested against the four log-probabilities.
    """
    return beta * reduce((winner - loser) * shift / sigma**2, how)


def log_ratio(y: Tensor, reference_mean: Tensor, shift: Tensor, sigma: Tensor, how: str) -> Tensor:
    """Delta(y | x) = log p_theta(y | x) - log p_ref(y | x), [n]: (2 (y - mu_ref) . shift - |shift|^2) / (2 sigma^2)."""
    return reduce((2 * (y - reference_mean) - shift) * shift / (2 * sigma**2), how)


def clamp_log_ratio(delta: Tensor, clamp: float) -> Tensor:
    """log clamp(exp(Delta), 1 +- clamp), as D3PO's official code limits the likelihood ratio."""
    return delta.clamp(math.log1p(-clamp), math.log1p(clamp))


def preference_loss(logit: Tensor) -> Tensor:
    """-log sigmoid(logit), [n] -> [n]: DPO (Rafailov et al. 2023, eq. 7)."""
    return F.softplus(-logit)


def clipped_surrogate(delta: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 +- clip)), rho = exp(Delta), [n]: PPO's loss as DDPO's official code uses it."""
    ratio = delta.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def normalised_advantages(rewards: Tensor, groups: Tensor, clip: float) -> Tensor:
    """(r - mean) / std within each prompt's group, clipped; over all rows where groups have one member.

    Args:
        rewards: [n]. groups: int64 [n], the same number for the samples of one prompt.
    """
    if len(groups.unique()) == len(groups):
        groups = torch.zeros_like(groups)
    _, inverse = groups.unique(return_inverse=True)
    count = torch.zeros(int(inverse.max()) + 1, dtype=rewards.dtype, device=rewards.device)
    total, squares = count.clone(), count.clone()
    count.index_add_(0, inverse, torch.ones_like(rewards))
    total.index_add_(0, inverse, rewards)
    centred = rewards - (total / count)[inverse]
    squares.index_add_(0, inverse, centred**2)
    std = (squares / count).sqrt()[inverse]
    floor = 1e-6 * rewards.abs().max()  # below it a spread is rounding, and would be blown up to advantages
    return (centred / (std + floor + 1e-8)).clamp(-clip, clip)
