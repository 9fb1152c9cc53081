"""Conversion of picture tensors to 8-bit RGB images."""

from __future__ import annotations

from PIL import Image
from torch import Tensor


def to_pillow(images: Tensor) -> list[Image.Image]:
    """8-bit RGB images of `images`, float [n, 3, H, W] in [0, 1]; rounded to the nearest level and clipped."""
    levels = (images.detach() * 255).round().clamp(0, 255).byte().cpu()
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).contiguous().numpy()]
