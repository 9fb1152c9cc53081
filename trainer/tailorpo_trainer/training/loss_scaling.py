"""Scale losses in fp16 up before the backward pass, and gradients down after it (Micikevicius et al. 2018).

Most gradients of a large model's activations are smaller than fp16's smallest number, and would be 0.
"""

import math
from typing import Any

import torch
from torch import Tensor

INITIAL_SCALE, SMALLEST_SCALE = 2.0**24, 2.0**-10
"""The losses are means over all elements of a latent, so that torch's own 2^16 would be too small for their gradients.
A gradient that is not finite even at the smallest scale is not only too large."""

GROWTH_INTERVAL = 50
"""Updates without a gradient that is too large, after which the scale doubles. A run has some hundred updates, where
torch's own 2000 would be too many; a scale that was too large costs one more backward pass."""


class LossScaler:
    """torch's `GradScaler`, for updates that are made again with half the scale if it was too large.

    Does nothing unless `dtype`, of the denoiser's arithmetic, is float16.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._scaler = torch.amp.GradScaler(
            device.type,
            init_scale=INITIAL_SCALE,
            growth_interval=GROWTH_INTERVAL,
            enabled=dtype == torch.float16,
        )
        # It is set up by its first loss, and a process may have none.
        self._scaler.scale(torch.zeros((), device=device))
        self._before_update: dict[str, Any] | None = None

    @property
    def factor(self) -> float:
        """The present scale; 1 in other precisions."""
        return self._scaler.get_scale()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients of the optimizer's parameters those of the losses that were not scaled."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's step, on gradients that are known to be finite; now and then the scale grows."""
        self._scaler.step(optimizer)
        self._scaler.update()
        self._before_update = None

    def lower(self) -> bool:
        """Halve the scale after a gradient that is not finite.

        Returns False, with the scale as it was before this update, where a smaller one would not help.
        """
        if not self._scaler.is_enabled():
            return False
        before = self._before_update = self._before_update or self._scaler.state_dict()
        self._scaler.update()
        if self.factor >= SMALLEST_SCALE:
            return True
        self._scaler.load_state_dict(before)
        self._before_update = None
        return False

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint; empty in other precisions than fp16."""
        return self._scaler.state_dict()

    def load(self, state: object) -> None:
        """Restore the result of `state`. None: of a checkpoint of another precision, or from before it was kept.

        Raises `ValueError` for anything else.
        """
        if not state or not self._scaler.is_enabled():
            return
        known = self._scaler.state_dict()
        if not isinstance(state, dict) or state.keys() != known.keys():
            raise ValueError("other keys than a scaler's")
        if any(type(value) not in (int, float) for value in state.values()) or not 0 < state["scale"] < math.inf:
            raise ValueError("a number is missing or out of range")
        self._scaler.load_state_dict(state)
