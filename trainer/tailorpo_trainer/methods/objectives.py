"""The losses, as pure functions of means and samples.

The Gaussians of policy and reference differ only in their means, so every loss is a function of
`shift` = mu_theta - mu_ref (DDPO: mu_theta - mu_old). This is the sampler's mean_m times the difference of two
predictions: the large common term mean_x x is never added, so no digits are lost to cancellation in fp32.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def reduce(values: Tensor, how: str) -> Tensor:
    """[n, ...] -> [n] by the `mean` or `sum` over each row's elements."""
    flat = values.flatten(1)
    return flat.mean(1) if how == "mean" else flat.sum(1)


def shared_logit(winner: Tensor, loser: Tensor, shift: Tensor, sigma: Tensor, beta: float, how: str) -> Tensor:
    """beta [Delta(y_w | x) - Delta(y_l | x)] for two next latents of one x: beta (y_w - y_l) . shift / sigma^2.

    One forward with a gradient and one without replace four log-probabilities (derived in `docs/methods.md`).
    Arguments [n, ...], where sigma broadcasts; returns [n].
    """
    return beta * reduce((winner - loser) * shift / sigma**2, how)


def log_ratio(y: Tensor, reference_mean: Tensor, shift: Tensor, sigma: Tensor, how: str) -> Tensor:
    """Delta(y | x) = log p_theta(y | x) - log p_ref(y | x), [n]: (2 (y - mu_ref) . shift - |shift|^2) / (2 sigma^2)."""
    return reduce((2 * (y - reference_mean) - shift) * shift / (2 * sigma**2), how)


def clamp_log_ratio(delta: Tensor, clamp: float) -> Tensor:
    """log clamp(exp(Delta), 1 +- clamp), [n] -> [n]: the likelihood ratio is limited as in D3PO's official code."""
    return delta.clamp(math.log1p(-clamp), math.log1p(clamp))


def preference_loss(logit: Tensor) -> Tensor:
    """-log sigmoid(logit), [n] -> [n]: DPO (Rafailov et al. 2023, eq. 7)."""
    return F.softplus(-logit)


def clipped_surrogate(delta: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 +- clip)) with rho = exp(Delta), [n]: PPO's loss (Schulman et al. 2017, eq. 7)."""
    ratio = delta.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
