"""Shared by all training stages: atomic checkpoints, the learning rate schedule, progress lines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_tensor`."""
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, constant: float = 0.6) -> float:
    """A short warm-up, then `peak` for the fraction `constant` of all steps, then linearly to zero."""
    remaining = (steps - step) / max(1.0, (1 - constant) * steps)
    return peak * min(1.0, (step + 1) / warmup, remaining)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary file, then rename it, so that no incomplete file can be read."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Loop:
    """Iterates over the remaining steps, with a checkpoint every `save_seconds`.

    `modules` (networks, averages and optimiser) are restored before the first step. The random state of a step is a
    function of (seed, step), so that a resumed run uses the same data as an uninterrupted one.
    """

    def __init__(
        self, name: str, work: Path, steps: int, modules: dict[str, Any], seed: int, save_seconds: float = 120
    ) -> None:
        self.name, self.path, self.steps, self.seed = name, work / f"{name}.pt", steps, seed
        self.modules, self.save_seconds = modules, save_seconds
        self.first, self.seconds = 0, 0.0
        self.losses: list[float] = []
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True)
            self.first, self.seconds = state["step"], state["seconds"]
            for key, module in modules.items():
                module.load_state_dict(state[key])

    def __iter__(self) -> Iterator[tuple[int, torch.Generator]]:
        began = saved = shown = time.monotonic()
        before = self.seconds
        for step in range(self.first, self.steps):
            yield step, torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            now = time.monotonic()
            self.seconds = before + now - began
            last = step + 1 == self.steps
            if now - shown > 20 or last:
                shown = now
                recent = sum(self.losses) / max(1, len(self.losses))
                self.losses.clear()
                where = f"step {step + 1:,} of {self.steps:,}"
                print(f"{self.name}: {where}, loss {recent:.4f}, {self.seconds:.0f} s", flush=True)
            if now - saved > self.save_seconds or last:
                saved = now
                state = {key: module.state_dict() for key, module in self.modules.items()}
                save(self.path, {"step": step + 1, "seconds": self.seconds, **state})


def optimizer_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    rate: float,
    clip: float = 1.0,
) -> float:
    """One optimiser step at learning rate `rate`, with the gradient's norm clipped; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return loss.item()


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augmentation: half of the images (N, 3, 64, 64) blurred by up to a factor of two, all with a little noise.

    Models that score generated pictures must be robust against such defects.
    """
    side = images.shape[-1]
    small = int(torch.randint(side // 2, side, (), generator=generator))
    blurred = nn.functional.interpolate(images, size=small, mode="bilinear", antialias=True, align_corners=False)
    blurred = nn.functional.interpolate(blurred, size=side, mode="bilinear", align_corners=False)
    which = torch.rand(len(images), 1, 1, 1, generator=generator)
    images = torch.where(which < 0.5, images, blurred)
    return images + torch.randn(images.shape, generator=generator) * 0.08 * which
