"""Distil the scoring decoder of `tiny-animals`: `python -m tools.tiny_animals.scoring_decoder`.

A smaller decoder learns the pictures that the pipeline's decoder makes of estimated clean latents (x0hat). It needs
neither the font nor the training pictures, because the pipeline generates the latents. One thread, minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from tailorpo_trainer.tiny_animals import PIPELINE, SCORING_DECODER
from tools.tiny_animals import autoencoder
from tools.tiny_animals.autoencoder import CHANNELS, SCALING, picture_loss
from tools.tiny_animals.emoji import all_captions
from tools.tiny_animals.loop import learning_rate, optimizer_step

WIDTH = 16
DECODER_BLOCKS = (4, 2, 0, 0)  # at 8, 16, 32 and 64 pixels a side
TRAJECTORIES, HELD_OUT, SAMPLING_BATCH = 512, 32, 32
DENOISING_STEPS = 20
STEPS, BATCH, RATE = 14_000, 16, 3e-3
GUIDANCE = (1.0, 6.0)
STRETCH = (0.85, 1.25)
"""Range of a random scale of the latents: a trained policy leaves the base model's range, first in saturation."""


def build() -> AutoencoderTiny:
    """The untrained decoder; its encoder is as small as the class allows, and never trained."""
    torch.manual_seed(0)
    return autoencoder.build(WIDTH, DECODER_BLOCKS, encoder_width=1)


@torch.no_grad()
def expected_latents(pipeline: StableDiffusionPipeline, trajectories: int, seed: int) -> Tensor:
    """x0hat at each step of so many trajectories, [n, 16, 8, 8], divided by the scaling factor as for the decoder."""
    generator = torch.Generator().manual_seed(seed)
    captions = all_captions()[:-1]
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(DENOISING_STEPS)
    empty, _ = pipeline.encode_prompt([""], "cpu", 1, False)
    found = []
    for _ in range(trajectories // SAMPLING_BATCH):
        chosen = torch.randint(len(captions), (SAMPLING_BATCH,), generator=generator)
        text, _ = pipeline.encode_prompt([captions[i] for i in chosen], "cpu", 1, False)
        states = torch.cat([empty.expand_as(text), text])
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(SAMPLING_BATCH, 1, 1, 1, generator=generator)
        x = torch.randn(SAMPLING_BATCH, CHANNELS, 8, 8, generator=generator)
        for timestep in scheduler.timesteps:
            both = pipeline.unet(torch.cat([x, x]), timestep, encoder_hidden_states=states, return_dict=False)[0]
            unconditional, conditional = both.chunk(2)
            predicted = unconditional + guidance * (conditional - unconditional)
            step = scheduler.step(predicted, timestep, x, eta=1.0, generator=generator)
            x = step.prev_sample
            found.append(step.pred_original_sample)
    latents = torch.cat(found)
    low, high = STRETCH
    return latents * (low + (high - low) * torch.rand(len(latents), 1, 1, 1, generator=generator)) / SCALING


@torch.no_grad()
def decode(model: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures in -1..1, clamped as in the pipeline."""
    return torch.cat([model.decode(some, return_dict=False)[0].clamp(-1, 1) for some in latents.split(64)])


def train(model: AutoencoderTiny, latents: Tensor, pictures: Tensor) -> None:
    """Fit the decoder to the teacher's pictures [n, 3, 64, 64] of these latents."""
    model.to(memory_format=torch.channels_last)
    parameters = list(model.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = model.decode(latents[chosen], return_dict=False)[0]
        loss = picture_loss(decoded.float(), pictures[chosen].float())
        losses.append(optimizer_step(loss, optimizer, parameters, learning_rate(step, STEPS, RATE, constant=0.4)))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1:,} of {STEPS:,}, loss {sum(losses) / len(losses):.4f}", flush=True)
            losses.clear()
    model.to(memory_format=torch.contiguous_format)


def measure(model: AutoencoderTiny, latents: Tensor, pictures: Tensor) -> float:
    """PSNR in dB against the teacher's pictures, for values in -1..1."""
    return float(10 * torch.log10(4 / (decode(model, latents) - pictures.float()).square().mean()))


def main() -> None:
    """Sample latents, train, write the decoder, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=SCORING_DECODER, help="the folder (default: this package's)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    began = time.process_time()
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE)
    teacher = pipeline.vae
    # Stored in half precision, which saves a gigabyte.
    latents = [expected_latents(pipeline, count, seed) for count, seed in ((TRAJECTORIES, 0), (HELD_OUT, 1))]
    pictures = [decode(teacher, some).half() for some in latents]
    print(f"{len(latents[0]):,} latents and pictures: {time.process_time() - began:.0f} s", flush=True)
    model = build()
    train(model, latents[0], pictures[0])
    model.half().save_pretrained(given.output)
    for path in given.output.glob("*.safetensors"):
        path.chmod(0o644)  # some versions write files for the owner only
    shipped = AutoencoderTiny.from_pretrained(given.output)
    print(f"PSNR against the real decoder, held out: {measure(shipped, latents[1], pictures[1]):.1f} dB")
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
