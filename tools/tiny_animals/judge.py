"""The independent judge: a small `transformers.ResNetForImageClassification` that names the animal of a picture.

It shares with the scorer only the training pictures: it has convolutions instead of attention, other seeds and stronger
augmentation. It is never a reward, so it can show whether the pictures of a trained policy still fit their prompts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from tailorpo_trainer.tiny_animals import ANIMALS, SIZE
from tools.tiny_animals.emoji import PictureSet
from tools.tiny_animals.loop import Loop, degrade, learning_rate, optimizer_step, to_tensor

WIDTHS, DEPTHS = (24, 48, 88), (1, 1, 1)
STEPS, BATCH, RATE = 1_500, 48, 2e-3


def build() -> ResNetForImageClassification:
    """The untrained judge."""
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=list(WIDTHS),
        depths=list(DEPTHS),
        layer_type="basic",
        downsample_in_first_stage=False,
        id2label=dict(enumerate(ANIMALS)),
        label2id={animal: i for i, animal in enumerate(ANIMALS)},
    )
    return ResNetForImageClassification(config)


def image_processor() -> ViTImageProcessor:
    """Resizes to 64x64, and maps values to -1..1."""
    half = [0.5, 0.5, 0.5]
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift a little, change colours and contrast, blur, add noise, grey out one square."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle, scale, shift = uniform(-0.2, 0.2), uniform(0.85, 1.2), uniform(-0.15, 0.15, 2)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    grey = images.mean(1, keepdim=True)
    images = (grey + (images - grey) * uniform(0.3, 1.4, 1, 1, 1)) * uniform(0.8, 1.2, 3, 1, 1)
    images = degrade(images + uniform(-0.15, 0.15, 1, 1, 1), generator)
    top, left = torch.randint(SIZE - 12, (2,), generator=generator).tolist()
    images[: n // 3, :, top : top + 12, left : left + 12] = 0
    return images


def train(work: Path, pictures: PictureSet) -> ResNetForImageClassification:
    """The trained judge, from the last checkpoint in `work` if there is one."""
    torch.manual_seed(1)
    model = build().train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.02)
    loop = Loop("judge", work, STEPS, {"model": model, "optimizer": optimizer}, seed=40)
    animals = torch.from_numpy(pictures.animals)
    for step, generator in loop:
        chosen = torch.randint(len(animals), (BATCH,), generator=generator).sort().values
        images = augment(to_tensor(pictures.pixels[chosen.numpy()]), generator)
        loss = F.cross_entropy(model(images).logits, animals[chosen], label_smoothing=0.05)
        loop.losses.append(optimizer_step(loss, optimizer, parameters, learning_rate(step, STEPS, RATE)))
    return model.eval()


@torch.no_grad()
def name(model: ResNetForImageClassification, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The animal's index for each picture (N, 64, 64, 3)."""
    batches = np.array_split(pixels, max(1, len(pixels) // 128))
    return torch.cat([model(to_tensor(some)).logits.argmax(1) for some in batches]).numpy()


def measure(model: ResNetForImageClassification, held_out: PictureSet) -> dict[str, float]:
    """Accuracy on held-out pictures."""
    return {"accuracy": float((name(model, held_out.pixels) == held_out.animals).mean())}
