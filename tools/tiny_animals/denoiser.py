"""The denoiser: a small stock `diffusers.UNet2DConditionModel` on 8x8x16 latents, and the pipeline around it.

Trained to predict the noise (as Stable Diffusion is), with min-SNR weights (arXiv 2303.09556, gamma 5),
stratified timesteps and a moving average of the weights, on latents and caption embeddings computed once.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tailorpo_trainer.tiny_animals import GROUNDS
from tools.tiny_animals.autoencoder import CHANNELS
from tools.tiny_animals.emoji import NO_GROUND, PREFIXES, PictureSet, caption_index
from tools.tiny_animals.loop import Loop, learning_rate, optimizer_step
from tools.tiny_animals.scorer import TEXT_WIDTH

WIDTHS = (96, 112)  # at 8x8 and 4x4
STEPS, BATCH, RATE = 7_300, 32, 1e-3
CONSTANT = 0.69  # fraction of the steps before the learning rate decays
AVERAGE = 0.999
CAPTION_DROP, GROUND_NAMED = 0.10, 0.60
SNR_CAP = 5.0


def build() -> UNet2DConditionModel:
    """The untrained denoiser. Attention only at 4x4, where it is cheap and still covers the whole picture."""
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, despite its name
        norm_num_groups=16,
    )
    # Residual branches and the output start at zero, which saves about a thousand steps.
    for module in model.modules():
        last = module.conv2 if isinstance(module, ResnetBlock2D) else getattr(module, "proj_out", None)
        if last is not None:
            nn.init.zeros_(last.weight)
    nn.init.zeros_(model.conv_out.weight)
    return model


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Average:
    """An exponential moving average of a module's parameters, whose decay increases during training."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`; early steps get little weight."""
        keep = min(AVERAGE, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)


def draw_captions(pictures: PictureSet, chosen: Tensor, generator: torch.Generator, empty: int) -> NDArray[np.int64]:
    """A caption index for each chosen picture: random prefix, ground often named, sometimes empty."""
    size = len(chosen)
    dropped, named = torch.rand(2, size, generator=generator).numpy()
    prefix = torch.randint(len(PREFIXES), (size,), generator=generator).numpy()
    ground = np.where(named < GROUND_NAMED, pictures.grounds[chosen], NO_GROUND)
    return np.where(dropped < CAPTION_DROP, empty, caption_index(pictures.animals[chosen], ground, prefix))


def train(work: Path, pictures: PictureSet, latents: NDArray[np.float16], states: Tensor) -> UNet2DConditionModel:
    """The averaged denoiser, from the last checkpoint in `work` if there is one.

    `latents` (N, 16, 8, 8) belong to `pictures`; `states` (M, 16, 64) to `all_captions()`.
    """
    torch.manual_seed(0)
    model = build()
    average = Average(model)
    alphas = scheduler().alphas_cumprod
    weights = (alphas / (1 - alphas)).reciprocal().mul(SNR_CAP).clamp(max=1)  # min(SNR, cap) / SNR
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    modules = {"model": model, "average": average, "optimizer": optimizer}
    loop = Loop("denoiser", work, STEPS, modules, seed=30)
    for step, generator in loop:
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = torch.from_numpy(latents[chosen.numpy()]).float()
        caption = states[draw_captions(pictures, chosen, generator, empty=len(states) - 1)]
        noise = torch.randn(clean.shape, generator=generator)
        # One timestep from each of BATCH equal parts of the schedule: less variance than independent draws.
        fractions = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        timesteps = (fractions * len(alphas)).long()
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        predicted = model(noisy, timesteps, encoder_hidden_states=caption, return_dict=False)[0]
        error = (predicted - noise).square().mean((1, 2, 3))
        loss = (weights[timesteps] * error).mean()
        loop.losses.append(error.mean().item())
        optimizer_step(loss, optimizer, parameters, learning_rate(step, STEPS, RATE, constant=CONSTANT))
        average.update(model, step)
    return average.module.eval()


def pipeline(
    denoiser: UNet2DConditionModel,
    autoencoder: AutoencoderTiny,
    tower: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """The stock pipeline of these components."""
    return StableDiffusionPipeline(
        vae=autoencoder.to(memory_format=torch.contiguous_format),
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write denoiser and autoencoder in half precision, and the text encoder in single precision.

    transformers keeps a file's half precision while diffusers converts to single, so the dtypes would not match.
    """
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(folder, safe_serialization=True)


@torch.no_grad()
def sample(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    guidance: float,
    steps: int = 20,
    seed: int = 0,
    eta: float = 1.0,
) -> NDArray[np.uint8]:
    """Pictures (N, 64, 64, 3) of the prompts, 64 at a time."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(0, len(prompts), 64):
        out = pipe(
            prompts[i : i + 64],
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            generator=generator,
            output_type="np",
        )
        batches.append(np.rint(out.images * 255).astype(np.uint8))
    return np.concatenate(batches)


def prompts_for(animal: str, count: int, grounds: bool) -> list[str]:
    """`count` evaluation prompts; with grounds, each names another colour in turn."""
    if not grounds:
        return [f"a photo of a {animal}"] * count
    return [f"a {animal} on a {GROUNDS[i % len(GROUNDS)]} background" for i in range(count)]
