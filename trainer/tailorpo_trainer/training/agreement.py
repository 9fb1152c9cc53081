"""What all processes of a run must have in common, compared before anything is trained.

Each of them reads its own document and files, with its own packages. Differences would show much later, as weights that
are no longer the same, or never.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.checkpoint import differences
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.spec.job import CLUSTER_FIELDS, NOT_IN_EXPERIMENT, TailorPOJob
from tailorpo_trainer.versions import software

OWN: dict[str, Any] = {
    **dict.fromkeys(CLUSTER_FIELDS, True),
    "rewards": NOT_IN_EXPERIMENT["rewards"],
    "evaluation": {"rewards": NOT_IN_EXPERIMENT["rewards"]},
    "training": NOT_IN_EXPERIMENT["training"] - {"iterations"},
}
"""Fields of `Spec` that each process may have of its own: how it reaches a scorer, and what saves memory."""


def check_documents(job: TailorPOJob, world: World) -> None:
    """Raise `ConfigurationError` in all processes, with each field or package in which two of them differ."""
    if world.size == 1:
        return
    versions = software()
    python, *_ = versions["python"].rpartition(".")  # patch versions do not change numbers
    mine = {
        "versions": versions | {"python": python},
        "metadata": {"name": job.metadata.name},
        "spec": job.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=OWN),
    }
    _compare(mine, world, "start all of them with the same document, options and image")


def check_contents(prompts: Mapping[str, Sequence[str]], policy: Policy, world: World) -> None:
    """The same for what the document only names: prompts, by the field that names them, and the model's weights."""
    if world.size == 1:
        return
    parts = {"denoiser": policy.unet, "decoder": policy.vae, "text encoder": policy.text_encoder}
    mine = {
        "precision": str(policy.dtype),
        "spec": {name: _digest(json.dumps(list(each))) for name, each in prompts.items()},
        "weights, with the adapter's first ones": {
            name: _digest([_sum(weights) for weights in network.state_dict().values()])
            for name, network in parts.items()
        },
    }
    _compare(mine, world, "give all of them the same files")


def _compare(mine: dict[str, Any], world: World, advice: str) -> None:
    first, *others = map(json.loads, world.everyone(json.dumps(mine).encode()))
    for rank, other in enumerate(others, start=1):
        found = [each for key in first for each in differences(first[key], other.get(key), key)]
        if found:
            lines = "\n".join(f"  {each.between('at rank 0', f'at rank {rank}')}" for each in found)
            raise ConfigurationError(f"the processes of this run differ:\n{lines}\n{advice}")


def _digest(values: object) -> str:
    return f"SHA-256 {hashlib.sha256(str(values).encode()).hexdigest()[:16]}"


def _sum(weights: Tensor) -> int:
    """The sum of a tensor's bits as integers, modulo 2^64: exact, so that no machine rounds it differently."""
    if not weights.is_floating_point():
        return int(weights.sum())
    widths = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(weights.detach().contiguous().view(widths[weights.element_size()]).sum(dtype=torch.int64))
