"""The interface of a reward, and of the document's item that configures it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """Scores pictures for their prompts. Higher is always better.

    `name` is its name in messages, `unit` the meaning of one unit of the score. If `differentiable`, the scores have
    finite gradients at every picture, also at a uniform grey one.
    """

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def unit(self) -> str: ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 [n] on the device of `images`, which are float32 [n, 3, H, W] in [0, 1].

        A picture's score depends only on the picture and its prompt, not on the batch.
        """
        ...


class RewardFactory(Protocol):
    """The object that an entry point of the group `tailorpo.rewards` names; called once a run to build the reward."""

    def __call__(self, parameters: Mapping[str, str], device: torch.device) -> Reward: ...


class RewardSpec(Protocol):
    """One item of `spec.rewards` in the document. None: the field is not set."""

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
