"""What a reward is, and what of the document it is made from. No torch at import time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """Scores pictures for their prompts. Higher is always better.

    `name` is what errors call it, `unit` what one unit of the score means. `differentiable` promises that
    gradients of the scores reach the pictures and are finite, for flat grey too.
    """

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def unit(self) -> str: ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 [n] on the device of `images`, which are float32 [n, 3, H, W] in [0, 1].

        A picture's score depends on that picture and its prompt alone, never on its place in the batch.
        """
        ...


class RewardFactory(Protocol):
    """What an entry point of the group `tailorpo.rewards` names: makes the reward, once a run."""

    def __call__(self, parameters: Mapping[str, str], device: torch.device) -> Reward: ...


class RewardSpec(Protocol):
    """One item of `spec.rewards`, as the document's model has it. None stands for "not given"."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def model(self) -> str | None: ...

    @property
    def endpoints(self) -> Sequence[str] | None: ...

    @property
    def timeout_seconds(self) -> float | None: ...

    @property
    def retries(self) -> int | None: ...

    @property
    def batch_size(self) -> int | None: ...

    @property
    def parameters(self) -> Mapping[str, str] | None: ...
