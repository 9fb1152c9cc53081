"""The size of a picture's JPEG file: the two compressibility rewards of DDPO.

Source: Black et al. 2023, "Training Diffusion Models with Reinforcement Learning". A kB has 1000 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from tailorpo_trainer.rewards.pixels import to_pillow

QUALITY = 95


class JpegIncompressibility:
    """Size of the picture's JPEG file in kB. It increases with detail, noise and the number of pixels."""

    name = "jpeg-incompressibility"
    differentiable = False
    unit = "kB"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        del device  # files are encoded on the CPU

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Kilobytes, float32 [n], of `images` [n, 3, H, W] in [0, 1]; prompts are ignored."""
        sizes = []
        for picture in to_pillow(images):
            file = io.BytesIO()
            picture.save(file, format="JPEG", quality=QUALITY)
            sizes.append(file.tell() / 1000)
        return torch.tensor(sizes, dtype=torch.float32, device=images.device)


class JpegCompressibility(JpegIncompressibility):
    """Minus the size of the picture's JPEG file in kB; highest for uniform pictures."""

    name = "jpeg-compressibility"
    unit = "-kB"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Minus kilobytes, float32 [n], of `images` [n, 3, H, W] in [0, 1]; prompts are ignored."""
        return -super().__call__(images, prompts)
