"""The colourfulness of a picture: the metric M(3) of Hasler and Suesstrunk.

Source: D. Hasler and S. Suesstrunk 2003, "Measuring colourfulness in natural images", Proc. SPIE 5007: with
rg = R - G and yb = (R + G) / 2 - B, M = sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 255
SMOOTH = 2.0**-10
"""In levels. Smooths both roots at 0, where their slope is infinite; changes a score by at most 1.3 times this."""


class Colourfulness:
    """M(3) on the paper's scale, 8-bit levels: 0 is grey, 15 slightly, 59 quite, 109 extremely colourful.

    As in the paper, and unlike in other code, rg and yb keep their sign. Variances are those of the population.
    """

    name = "colourfulness"
    differentiable = True
    unit = "8-bit levels"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        del device  # has no weights

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """M(3), [n] in the dtype of `images` [n, 3, H, W] in [0, 1]; prompts are ignored. Gradients are finite."""
        red, green, blue = (images * LEVELS).flatten(2).unbind(1)
        opponent = torch.stack((red - green, (red + green) / 2 - blue), dim=1)
        mean = opponent.mean(2)
        variance = opponent.var(2, correction=0)
        return _root(variance.sum(1)) + 0.3 * _root(mean.square().sum(1))


def _root(square: Tensor) -> Tensor:
    """The square root, changed so that it is smooth at 0, and still 0 there."""
    return (square + SMOOTH**2).sqrt() - SMOOTH
