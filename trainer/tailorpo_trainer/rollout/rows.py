"""Rows: what training reads of a rollout. A row is one sample at one denoising step, alone or as a pair."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """Rows of one transition each, for policy-gradient methods.

    Attributes:
        sample: index of the sample among this process' samples, int64 [n]. step: of the denoising step, int64 [n].
        x, y: latent and next latent, float32 [n, c, h, w]. prediction: the sampling policy's at x, of that shape.
        advantage: normalised reward, float32 [n].
        weight: of the row's loss, float32 [n]; 0 masks a row. Rows are never dropped: all ranks need equal counts.
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
    """Rows of a preferred and a rejected next latent, for preference methods; as `Transitions`, and:

    Attributes:
        winner, loser: next latents [n, c, h, w]. x_loser: the latent that the loser was sampled from; None if that is
            x, as in the step-wise methods.
        gap: reward of the winner minus that of the loser [n], in the reward sum's unit.
        prediction: the policy's at x with its graph, if the rollout kept it; None: the loss predicts again.
        kept: the rows whose prediction was kept, bool [n]; the loss predicts again at the others. None: all rows.
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


def select(rows: Rows, index: Tensor | slice) -> Rows:
    """Some of the rows, in the order of `index` (int64 [m] or a slice)."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return replace(rows, **{name: value[index] for name, value in values.items() if value is not None})


Batch = TypeVar("Batch")


def concatenate(values: Sequence[Batch]) -> Batch:
    """Concatenate rows, or rollouts of disjoint samples: all tensors in lists and dataclasses, along dimension 0."""
    return values[0] if len(values) == 1 else cast(Batch, _concatenate(values))


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, list):
        return [_concatenate(items) for items in zip(*values, strict=True)]
    if is_dataclass(first) and not isinstance(first, type):
        return replace(
            first, **{f.name: _concatenate([getattr(value, f.name) for value in values]) for f in fields(first)}
        )
    return first
