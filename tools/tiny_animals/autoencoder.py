"""64x64 pictures to 8x8x16 latents and back, as a stock `diffusers.AutoencoderTiny`.

The encoder is not trained. Without residual blocks it is linear, so it is set in closed form to the 16 leading
principal components of the pictures' 8x8 patches. The latents are therefore well-conditioned, and the denoiser can be
trained before the decoder. The decoder makes pictures sharp: it is deep at 8x8 and 16x16, where depth is cheap, and it
is trained with noise on the latents, because the denoiser's latents have errors.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tools.tiny_animals.emoji import PictureSet
from tools.tiny_animals.loop import Loop, learning_rate, optimizer_step, to_pixels, to_tensor

CHANNELS = 16
SCALING = 3.0  # the decoder limits its input to +-3, so its latents are the denoiser's divided by this
WIDTH = 48
DECODER_BLOCKS = (6, 5, 1, 0)  # at 8, 16, 32 and 64 pixels a side
STEPS, BATCH, RATE = 5_400, 16, 2e-3
LATENT_NOISE = 0.08  # scale of the half-normal strength of the noise on latents, in units of their RMS
PATCH = 8
COMPONENTS_FROM = 4_800  # pictures


def build(
    width: int = WIDTH, decoder_blocks: tuple[int, ...] = DECODER_BLOCKS, encoder_width: int = WIDTH
) -> AutoencoderTiny:
    """The untrained autoencoder, `width` of its decoder."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(encoder_width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=decoder_blocks,
        latent_channels=CHANNELS,
        scaling_factor=SCALING,
    )
    initialise(model.decoder)
    return model


def initialise(decoder: Any) -> None:
    """He initialisation, and residual branches near zero; without normalisation layers, the default hardly learns."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for layer in decoder.layers:
            if hasattr(layer, "fuse"):  # an AutoencoderTinyBlock
                layer.conv[-1].weight.mul_(0.1)
        decoder.layers[-1].weight.mul_(0.1)
        decoder.layers[-1].bias.fill_(0.5)


def principal_components(pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Half-whitened PCA of 8x8 patches: the map (16, 192) and the mean (192,), for pictures in -1..1.

    Half-whitened means divided by the fourth root of the variance: strong components still emerge from the noise first,
    as in natural images, and the weak ones, which hold the outlines, are not lost in it.
    """
    patches = F.pixel_unshuffle(to_tensor(pixels), PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2).double()
    mean = patches.mean(0)
    centred = patches - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance, vectors = variance.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    rms = variance.sqrt().mean().sqrt()
    linear = (vectors * variance**-0.25 / (rms * SCALING)).T
    return linear.float(), mean.float()


@torch.no_grad()
def set_encoder(model: AutoencoderTiny, linear: Tensor, mean: Tensor) -> None:
    """Write the linear map into the encoder's convolutions; a stride-2 one folds 2x2 pixels into channels."""
    first, *folds, last = model.encoder.layers
    for layer in (first, *folds, last):
        nn.init.zeros_(layer.weight)
    for layer in (first, last):
        nn.init.zeros_(layer.bias)
    for c in range(3):
        first.weight[c, c, 1, 1] = 1
    for fold, channels in zip(folds[:2], (3, 12), strict=True):
        for c, row, column in product(range(channels), range(2), range(2)):
            fold.weight[c * 4 + row * 2 + column, c, 1 + row, 1 + column] = 1
    kernel = linear.reshape(CHANNELS, 3, PATCH, PATCH)
    for c, y, x in product(range(3), range(PATCH), range(PATCH)):
        channel = (c * 4 + y % 2 * 2 + x % 2) * 4 + y // 2 % 2 * 2 + x // 2 % 2
        # The encoder's input is (picture + 1) / 2, hence the 2 here and the row sums in the bias.
        folds[2].weight[:CHANNELS, channel, 1 + y // 4, 1 + x // 4] = 2 * kernel[:, c, y, x]
    for c in range(CHANNELS):
        last.weight[c, c, 1, 1] = 1
    last.bias[:] = -(linear @ mean) - linear.sum(1)


@torch.no_grad()
def encode_closed_form(
    pixels: NDArray[np.uint8], linear: Tensor, mean: Tensor, batch: int = 2_000
) -> NDArray[np.float16]:
    """The latents of `encode`, (N, 16, 8, 8), by one matrix product, which is a hundred times faster."""
    kernel = (linear * SCALING).reshape(CHANNELS, 3, PATCH, PATCH)
    bias = -(linear @ mean) * SCALING
    batches = [
        F.conv2d(to_tensor(pixels[i : i + batch]), kernel, bias, stride=PATCH).to(torch.float16).numpy()
        for i in range(0, len(pixels), batch)
    ]
    return np.concatenate(batches)


def picture_loss(decoded: Tensor, true: Tensor) -> Tensor:
    """Absolute and squared error, plus the absolute error of horizontal and vertical differences (edges)."""
    error = decoded - true
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train(work: Path, pictures: PictureSet) -> AutoencoderTiny:
    """The autoencoder with its decoder trained, from the last checkpoint in `work` if there is one."""
    torch.manual_seed(0)
    model = build()
    set_encoder(model, *principal_components(pictures.pixels[:COMPONENTS_FROM]))
    model.to(memory_format=torch.channels_last)
    parameters = list(model.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    loop = Loop("autoencoder", work, STEPS, {"model": model, "optimizer": optimizer}, seed=10)
    for step, generator in loop:
        chosen = torch.randint(len(pictures.pixels), (BATCH,), generator=generator).sort().values
        images = to_tensor(pictures.pixels[chosen.numpy()]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = model.encoder(images)
        strength = torch.randn(BATCH, 1, 1, 1, generator=generator).abs() * LATENT_NOISE / SCALING
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # halves the time where the CPU has AVX-512 BF16
            decoded = model.decoder(noisy)
        rate = learning_rate(step, STEPS, RATE)
        loop.losses.append(optimizer_step(picture_loss(decoded.float(), images), optimizer, parameters, rate))
    return model.eval()


@torch.no_grad()
def encode(model: AutoencoderTiny, pixels: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float16]:
    """Latents in the denoiser's scale (RMS about 1), (N, 16, 8, 8)."""
    batches = [
        (model.encoder(to_tensor(pixels[i : i + batch])) * SCALING).to(torch.float16).numpy()
        for i in range(0, len(pixels), batch)
    ]
    return np.concatenate(batches)


@torch.no_grad()
def decode(model: AutoencoderTiny, latents: NDArray[Any], batch: int = 64) -> NDArray[np.uint8]:
    """Pictures (N, 64, 64, 3) of the denoiser's latents."""
    batches = [
        to_pixels(model.decoder(torch.from_numpy(latents[i : i + batch]).float() / SCALING))
        for i in range(0, len(latents), batch)
    ]
    return np.concatenate(batches)


def measure(model: AutoencoderTiny, held_out: PictureSet, count: int = 480) -> dict[str, float]:
    """Reconstruction error on unseen pictures, for values in -1..1."""
    pixels = held_out.pixels[:count]
    error = to_tensor(decode(model, encode(model, pixels))) - to_tensor(pixels)
    mse = error.square().mean().item()
    return {"reconstruction_mse": mse, "reconstruction_psnr_db": 10 * float(np.log10(4 / mse))}
