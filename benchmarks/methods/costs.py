"""FLOPs of one training iteration of a document, counted: denoiser, decoder and reward, forward and backward."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from tailorpo_trainer import estimate, rewards
from tailorpo_trainer.spec.job import TailorPOJob

SIDE = 64
"""Side in pixels of the pictures for which the reward's network is counted: that of the shipped model."""


def of_iteration(job: TailorPOJob) -> float:
    """The count of `tailorpo estimate`, plus the reward's own network, which that does not include."""
    found = estimate.estimate(job)
    rows = found.counts.iteration
    forward, backward = of_reward(job)
    queries = sum(count for (what, _), count in rows.items() if what == "reward")
    return (
        sum(found.flops[key] * count for key, count in rows.items())
        + forward * queries
        + backward * rows.get(("decode backward", "guidance"), 0.0)
    )


def of_reward(job: TailorPOJob) -> tuple[float, float]:
    """FLOPs of scoring one picture, and of the backward pass to its pixels."""
    reward = rewards.load(job.spec.rewards, torch.device("cpu"))
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reward(pictures, ["a photo of a cat"] * 2)  # a prompt is encoded once in a run, so not here
    with FlopCounterMode(display=False) as counter:
        total = reward(pictures, ["a photo of a cat"] * 2).total.sum()
        forward = counter.get_total_flops()
        torch.autograd.grad(total, pictures)
    return forward / 2, (counter.get_total_flops() - forward) / 2
