"""Rewards: functions that score pictures, one module each, found by name or by an entry point.

Importing this package loads no torch, so that documents can be checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tailorpo_trainer.rewards.base import Reward, RewardFactory, RewardSpec

if TYPE_CHECKING:
    import torch

    from tailorpo_trainer.rewards.weighted_sum import RewardSum, Scores

__all__ = ["Reward", "RewardFactory", "RewardSpec", "RewardSum", "Scores", "load", "require_differentiable"]


def __getattr__(name: str) -> Any:
    if name in ("RewardSum", "Scores"):  # they need torch, so they are imported when asked for
        from tailorpo_trainer.rewards import weighted_sum

        return getattr(weighted_sum, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(specs: Sequence[RewardSpec], device: torch.device | str, path: str = "spec.rewards") -> RewardSum:
    """The weighted sum of the document's rewards on `device`. Two rewards of one name become `name` and `name-2`.

    path: the document's field that holds `specs`. Raises `ConfigurationError`, whose message begins with the field,
    such as `spec.rewards[0].model`; `ResourceError` if memory is full.
    """
    from tailorpo_trainer.rewards.weighted_sum import build

    return build(specs, device, path)


def require_differentiable(rewards: RewardSum, method: str) -> None:
    """Raise `ConfigurationError` unless all rewards of the sum are differentiable, as `method` needs."""
    from tailorpo_trainer.errors import ConfigurationError
    from tailorpo_trainer.rewards.registry import BUILTIN

    blocking = [term.name for term in rewards.terms if not term.reward.differentiable]
    if blocking:
        usable = sorted(name for name, builtin in BUILTIN.items() if builtin.differentiable)
        raise ConfigurationError(
            f"spec.method.name: {method} needs a differentiable reward; {' and '.join(blocking)} "
            f"{'is' if len(blocking) == 1 else 'are'} not (differentiable: {', '.join(usable)})"
        )
