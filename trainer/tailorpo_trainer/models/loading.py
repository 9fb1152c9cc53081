"""The policy that a document describes."""

import os
from typing import Any

import torch

from tailorpo_trainer.diffusion.batch_sizes import batch_sizes
from tailorpo_trainer.diffusion.ddim import ddim
from tailorpo_trainer.diffusion.policy import PRECISIONS, Policy
from tailorpo_trainer.models.adapter import attach_adapter
from tailorpo_trainer.models.decoder import check_decoder, load_decoder
from tailorpo_trainer.models.pipeline import load_pipeline
from tailorpo_trainer.spec.job import TrainingSpec


def pick_device() -> torch.device:
    """This process' accelerator (by LOCAL_RANK under torchrun), or the CPU if there is none."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)))


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """For `auto`: bf16 on accelerators that compute in it; fp32 on CPUs, where bf16 can be 10 times slower.

    Nvidia's GPUs before capability 8.0 only emulate bf16. Those from 7.0 on are made for fp16, older ones for fp32.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else torch.float32
    if device.type == "xpu" and not torch.xpu.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def place(unet: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move the denoiser, its frozen weights in `dtype`, and the adapter bit for bit as it is, in float32.

    In bf16 an adapter that was loaded would be rounded before training, and later its small updates to nothing.
    """
    exact = {name: value.detach().clone() for name, value in unet.named_parameters() if value.requires_grad}
    unet.to(device, dtype)
    for name, parameter in unet.named_parameters():
        if name in exact:
            parameter.data = exact[name].to(device, torch.float32)


def load_policy(run: TrainingSpec, device: torch.device | None = None) -> Policy:
    """The policy that a document describes. Its adapter is new or `lora.initial`; everything else is frozen.

    Raises `ConfigurationError`, `DataError`, `ResourceError` or `UnavailableError` if the model cannot be loaded.
    """
    device = device or pick_device()
    dtype = pick_dtype(run.training.precision, device)
    wanted = run.model.scoring_decoder
    small = None if wanted is None else load_decoder(wanted)  # small, so errors appear before the pipeline is read
    pipeline = load_pipeline(run.model)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    sampling = run.sampling
    factor = getattr(pipeline, "vae_scale_factor", 8)
    if wanted is not None and small is not None:
        check_decoder(wanted, small.config, vae.config, factor)
    decoders = [vae] if small is None else [vae, small]
    for network in (unet, text_encoder, *decoders):
        network.requires_grad_(False).eval()
    own = unet.config.sample_size
    sides = (own, own) if isinstance(own, int) else own
    requested = (sampling.height, sampling.width)
    size = [pixels // factor if pixels else side for pixels, side in zip(requested, sides, strict=True)]
    attach_adapter(unet, run)
    place(unet, device, dtype if device.type != "cpu" else torch.float32)
    for decoder in decoders:
        exact = decoder.config.get("force_upcast", True) or device.type == "cpu"
        decoder.to(device, torch.float32 if exact else dtype)
        if run.training.vae_slicing and hasattr(decoder, "enable_slicing"):
            decoder.enable_slicing()
    text_encoder.to(device)
    if run.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # diffusers checkpoints only in training mode; these models have no dropout
    return Policy(
        unet=unet,
        vae=vae,
        scoring_decoder=small,
        text_encoder=text_encoder,
        tokenizer=pipeline.tokenizer,
        sampler=ddim(pipeline.scheduler, sampling.steps, sampling.eta, sampling.timestep_spacing),
        guidance_scale=sampling.guidance_scale,
        device=device,
        dtype=dtype,
        negative_prompt=sampling.negative_prompt,
        batch_sizes=batch_sizes(run.training, size[0] * size[1] * factor**2),
        latent_shape=(unet.config.in_channels, *size),
    )
