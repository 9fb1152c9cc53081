"""What a rollout leaves for training: rows that an update reads, whatever the method."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """Rows of one denoising step each; all tensors share their first dimension [n], latents are float32.

    Attributes:
        sample: which sample of the iteration, for its text; int64. step: index of the denoising step; int64.
        x, y: latent and next latent. prediction: the policy's at x when it sampled.
        advantage: normalised reward.
        weight: 0 masks a row; rows are never dropped, because all ranks must hold equal counts.
    """

    sample: Tensor
    step: Tensor
    x: Tensor
    y: Tensor
    prediction: Tensor
    advantage: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.sample)


@dataclass(frozen=True)
class Pairs:
    """Rows of a preferred and a rejected next latent; as `Transitions`, and:

    Attributes:
        winner, loser: next latents. x_loser: the latent that the loser comes from; None when it is x itself, as in
            the step-wise methods.
        gap: reward of the winner minus that of the loser, in the reward sum's unit.
        prediction: the policy's at x with its graph, if the rollout kept it; None: the loss predicts again.
        kept: of which rows it did, bool; the loss predicts again at the others. None: of all.
    """

    sample: Tensor
    step: Tensor
    x: Tensor
    winner: Tensor
    loser: Tensor
    gap: Tensor
    weight: Tensor
    x_loser: Tensor | None = None
    prediction: Tensor | None = None
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)


Rows = TypeVar("Rows", bound=Transitions | Pairs)


def take(rows: Rows, index: Tensor | slice) -> Rows:
    """Some of the rows, in the order of `index`."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return replace(rows, **{name: value[index] for name, value in values.items() if value is not None})


Drawn = TypeVar("Drawn")


def merge(parts: Sequence[Drawn]) -> Drawn:
    """One rollout of the rollouts of some samples each: lists, dataclasses and tensors, joined along the samples."""
    return parts[0] if len(parts) == 1 else cast(Drawn, _join(parts))


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, list):
        return [_join(items) for items in zip(*parts, strict=True)]
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: _join([getattr(part, f.name) for part in parts]) for f in fields(first)})
    return first
