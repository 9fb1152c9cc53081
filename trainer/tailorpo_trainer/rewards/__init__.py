"""Rewards: what a picture is worth. One file a reward, found by its name or by an entry point.

Importing this package loads no torch, so that documents are checked where only the light core is installed.
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
    """The weighted sum of the document's rewards, ready on `device`.

    `path` is where `specs` stand in the document; every ConfigurationError begins with the field it is about,
    such as `spec.rewards[0].model`. Two rewards of one name are told apart as `name` and `name-2`.
    """
    from tailorpo_trainer.rewards.weighted_sum import build

    return build(specs, device, path)


def require_differentiable(rewards: RewardSum, method: str) -> None:
    """ConfigurationError unless every reward of the sum lets gradients through, which `method` needs."""
    from tailorpo_trainer.errors import ConfigurationError
    from tailorpo_trainer.rewards.registry import BUILTIN

    blocking = [term.name for term in rewards.terms if not term.reward.differentiable]
    if blocking:
        usable = sorted(name for name, builtin in BUILTIN.items() if builtin.differentiable)
        raise ConfigurationError(
            f"spec.method.name: {method} needs a differentiable reward; {' and '.join(blocking)} "
            f"{'is' if len(blocking) == 1 else 'are'} not (differentiable: {', '.join(usable)})"
        )
