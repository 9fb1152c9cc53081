"""The weighted sum of a document's rewards; checks everything that they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from tailorpo_trainer.errors import ConfigurationError, NotFiniteError, ResourceError, RewardError, TailorPOError
from tailorpo_trainer.rewards.base import Reward, RewardSpec
from tailorpo_trainer.rewards.registry import Builtin, find


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of n pictures.

    `total`: the weighted sum, float32 [n]. `term_scores`: each reward's raw scores, float32 [n], by its name.
    """

    total: Tensor
    term_scores: dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """One reward of the sum. name: in metrics. batch_size: pictures in one call; None: all."""

    name: str
    weight: float
    reward: Reward
    batch_size: int | None = None


class RewardSum:
    """The sum of weight times reward.

    Attributes:
        queries: how many pictures were scored so far.
        interruptible: entered around each call of a reward, which may take long: see `World.interruptible`.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self.queries = 0
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms, in the document's order."""
        return tuple(term.name for term in self.terms)

    @property
    def differentiable(self) -> bool:
        """Whether the total has a gradient to the pictures: all rewards must be differentiable."""
        return all(term.reward.differentiable for term in self.terms)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score `images`, float32 [n, 3, H, W] in [0, 1], each for its prompt.

        Raises `NotFiniteError` if a pixel or a score is NaN or infinite, `ResourceError` if memory is full,
        `RewardError` if a reward raises or does not return n scores. A reward's own `TailorPOError` is not changed.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for images of shape {list(images.shape)}")
        broken = ~images.detach().flatten(1).isfinite().all(1)
        if broken.any():
            raise NotFiniteError(
                f"the model made a picture with NaN or infinite pixels for prompt {_first(prompts, broken)!r}"
            )
        term_scores = {term.name: self._score(term, images, prompts) for term in self.terms}
        total = torch.zeros(len(images), dtype=torch.float32, device=images.device)
        for term in self.terms:
            total = total + term.weight * term_scores[term.name]
        self.queries += len(images)
        return Scores(total, term_scores)

    def _score(self, term: Term, images: Tensor, prompts: Sequence[str]) -> Tensor:
        size = term.batch_size or max(1, len(images))
        batches = [slice(start, start + size) for start in range(0, len(images), size)]
        # A score in bfloat16 would have two digits, so the caller's autocast is disabled for rewards.
        with torch.autocast(images.device.type, enabled=False), self.interruptible():
            scores = [_call(term, images[batch], prompts[batch]) for batch in batches]
        values = torch.cat(scores) if scores else images.new_zeros(0)
        broken = ~values.detach().isfinite()
        if broken.any():
            value, prompt = values[broken][0].item(), _first(prompts, broken)
            raise NotFiniteError(f"reward {term.name!r} returned {value} for prompt {prompt!r}")
        return values


def _call(term: Term, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """One call of a reward, which may be any code: float32 [n] on the images' device, or a `TailorPOError`."""
    try:
        scores = term.reward(images, list(prompts))
    except TailorPOError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"reward {term.name!r} ran out of memory on {len(images)} pictures: {error}") from error
    except Exception as error:
        raise RewardError(f"reward {term.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor):
        raise RewardError(
            f"reward {term.name!r} returned {type(scores).__name__}, not a tensor of {len(images)} scores"
        )
    if scores.shape != (len(images),) or scores.is_complex():
        shape = f"{str(scores.dtype).removeprefix('torch.')} {list(scores.shape)}"
        raise RewardError(
            f"reward {term.name!r} returned {shape} for {len(images)} pictures, not float32 [{len(images)}]"
        )
    wants_gradient = torch.is_grad_enabled() and images.requires_grad and term.reward.differentiable
    if wants_gradient and not scores.requires_grad:
        raise RewardError(f"reward {term.name!r} says it is differentiable, but its scores carry no gradient")
    return scores.to(images.device, torch.float32)


def _first(prompts: Sequence[str], rows: Tensor) -> str:
    """The prompt of the first True row."""
    return prompts[int(rows.nonzero()[0])]


def build(specs: Sequence[RewardSpec], device: torch.device | str, path: str) -> RewardSum:
    """Implements `rewards.load`."""
    terms: list[Term] = []
    for index, spec in enumerate(specs):
        used = {term.name for term in terms}
        name, number = spec.name, 1
        while name in used:
            number += 1
            name = f"{spec.name}-{number}"
        terms.append(_term(name, spec, torch.device(device), f"{path}[{index}]"))
    return RewardSum(terms)


def _term(name: str, spec: RewardSpec, device: torch.device, path: str) -> Term:
    try:
        source = find(spec.name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}.name: {error}") from error
    if isinstance(source, Builtin):
        fields = {field: getattr(spec, field) for field in source.fields}
        fields = {field: value for field, value in fields.items() if value is not None}
        try:
            reward: Reward = getattr(import_module(source.module), source.attribute)(device=device, **fields)
        except ConfigurationError as error:  # its message begins with the field
            raise ConfigurationError(f"{path}.{error}") from error
        own_batches = "batch_size" in source.fields
        return Term(name, spec.weight, reward, None if own_batches else spec.batch_size)

    plugin = f"{path}.name: the plug-in {spec.name!r} ({source.value})"
    try:
        factory = source.load()
    except Exception as error:
        raise ConfigurationError(f"{plugin} cannot be imported: {type(error).__name__}: {error}") from error
    parameters = {**({"model": spec.model} if spec.model is not None else {}), **(spec.parameters or {})}
    try:
        reward = factory(parameters, device)
    except TailorPOError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceError(f"reward {name!r} ran out of memory while it was loaded: {error}") from error
    except Exception as error:
        raise ConfigurationError(f"{plugin} cannot start: {type(error).__name__}: {error}") from error
    if not isinstance(reward, Reward):
        raise ConfigurationError(
            f"{plugin} made a {type(reward).__name__}, which is no reward: "
            "it needs name, differentiable, unit and __call__"
        )
    return Term(name, spec.weight, reward, spec.batch_size)
