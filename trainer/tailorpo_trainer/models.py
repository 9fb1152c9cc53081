"""Load a diffusers pipeline of the SD 1.x/2.x family, attach an adapter, and say clearly what could not be loaded."""

import os
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import spec
from tailorpo_trainer.exits import ConfigurationError, DataError, UnavailableError
from tailorpo_trainer.noise import Purpose
from tailorpo_trainer.policy import PRECISIONS, Policy
from tailorpo_trainer.sampler import ddim

SHIPPED = "tiny-animals"


def pick_device() -> torch.device:
    """The accelerator torch sees (this process' own under torchrun), else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)))


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 on accelerators that have it; fp32 on CPUs, where bf16 without special instructions is 10 times slower."""
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def load_policy(run: spec.TrainingSpec, device: torch.device | None = None) -> Policy:
    """The policy that a document describes, its adapter fresh (or `lora.initial`), everything else frozen.

    Raises `ConfigurationError`, `DataError` or `UnavailableError` with one sentence if the model cannot be had.
    """
    device = device or pick_device()
    dtype = pick_dtype(run.training.precision, device)
    pipeline = load_pipeline(run.model)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False).eval()
    sampling = run.sampling
    factor = getattr(pipeline, "vae_scale_factor", 8)
    size = [pixels // factor if pixels else unet.config.sample_size for pixels in (sampling.height, sampling.width)]
    attach_adapter(unet, run)
    unet.to(device, dtype if device.type != "cpu" else torch.float32)
    vae.to(device, torch.float32 if vae.config.get("force_upcast", True) or device.type == "cpu" else dtype)
    text_encoder.to(device)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates vanish in bf16 weights
    if run.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # diffusers recomputes in training mode only; there is no dropout in these models
    if run.training.vae_slicing and hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    return Policy(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=pipeline.tokenizer,
        sampler=ddim(pipeline.scheduler, sampling.steps, sampling.eta, sampling.timestep_spacing),
        guidance_scale=sampling.guidance_scale,
        device=device,
        dtype=dtype,
        negative_prompt=sampling.negative_prompt,
        decode_batch_size=run.training.decode_batch_size,
        latent_shape=(unet.config.in_channels, *size),
    )


def attach_adapter(unet: Any, run: spec.TrainingSpec) -> None:
    """Add a LoRA to the denoiser: A Gaussian, B zero, so that it begins as the base model (Hu et al. 2021)."""
    from peft import LoraConfig

    config = LoraConfig(
        r=run.lora.rank,
        lora_alpha=run.lora.alpha,
        init_lora_weights="gaussian",
        target_modules=list(run.lora.target_modules),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.training.seed + (Purpose.ADAPTER << 56))
        try:
            unet.add_adapter(config)
        except ValueError as error:
            raise ConfigurationError(
                f"spec.lora.targetModules: {run.lora.target_modules} fit no module of the denoiser: endings of module "
                f"names such as to_q, to_k, to_v, to_out.0 ({str(error)[:160]})"
            ) from None
    if run.lora.initial is not None:
        _load_initial(unet, run.lora.initial)


def _load_initial(unet: Any, source: str) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import set_peft_model_state_dict

    try:
        state = StableDiffusionPipeline.lora_state_dict(source, local_files_only=Path(source).exists())[0]
        wanted = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
        result = set_peft_model_state_dict(unet, _peft_names(wanted))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"spec.lora.initial: {source!r} cannot be loaded as this model's LoRA: {error}"
        ) from None
    if result is not None and result.unexpected_keys:
        raise ConfigurationError(
            f"spec.lora.initial: {source!r} has weights for modules outside spec.lora.targetModules, such as "
            f"{result.unexpected_keys[0]}"
        )


def _peft_names(state: dict[str, Any]) -> dict[str, Any]:
    from diffusers.utils import convert_unet_state_dict_to_peft

    return dict(convert_unet_state_dict_to_peft(state))


def load_pipeline(model: spec.Model) -> Any:
    """A diffusers pipeline by shipped name, folder or hub id, in float32."""
    source = locate(model)
    quiet()
    from diffusers import DiffusionPipeline

    if isinstance(source, Path) and not (source / "model_index.json").is_file():
        raise ConfigurationError(
            f"spec.model.name: {model.name!r} is no diffusers pipeline: the folder has no model_index.json"
        )
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(source),
            revision=model.revision,
            variant=model.variant,
            dtype=torch.float32,
            use_safetensors=True,
        )
    except Exception as error:  # the libraries raise a dozen kinds; each becomes one sentence
        raise _explain(model, source, error) from None
    missing = [
        part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not hasattr(pipeline, part)
    ]
    if missing or hasattr(pipeline, "text_encoder_2"):
        raise ConfigurationError(
            f"spec.model.name: {model.name!r} is a {type(pipeline).__name__}: Stable Diffusion 1.x and 2.x pipelines "
            "can be trained"
        )
    return pipeline


def quiet() -> None:
    """Keep the libraries' own warnings and bars out of our output; their errors still raise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def locate(model: spec.Model) -> Path | str:
    """A folder on this machine, or a hub id as it is."""
    name = model.name
    if name == SHIPPED:
        from tailorpo_trainer import tiny_animals

        return tiny_animals.PIPELINE
    if name.startswith("s3://"):
        raise ConfigurationError(
            f"spec.model.name: {name!r}: models are not read from S3 yet; copy the pipeline to a folder and name that"
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigurationError(
            f"spec.model.name: {name!r} is no folder here; give {SHIPPED!r}, a folder with a model_index.json, or a hub "
            "id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        )
    return name


def _explain(model: spec.Model, source: Path | str, error: Exception) -> Exception:
    """One sentence for each way in which a model cannot be had."""
    from huggingface_hub import errors as hub

    name = f"spec.model.name: {model.name!r}"
    chain = [error]
    while (following := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(following)  # type: ignore[arg-type]
    kinds = {kind.__name__ for item in chain for kind in type(item).__mro__}
    text = " ".join(str(error).split())[:200]
    if isinstance(source, Path):
        if model.variant and "variant" in text:
            return ConfigurationError(f"spec.model.variant: {model.variant!r} is not in {model.name!r}: {text}")
        return DataError(f"{name} cannot be loaded: {text}")
    if hub.GatedRepoError.__name__ in kinds:
        return ConfigurationError(
            f"{name} is gated: accept its licence on its hub page, then set HF_TOKEN to a token that may read it"
        )
    if hub.RevisionNotFoundError.__name__ in kinds:
        return ConfigurationError(f"spec.model.revision: {model.revision!r} does not exist in {model.name!r}")
    if hub.RepositoryNotFoundError.__name__ in kinds:
        return ConfigurationError(f"{name} is not on the hub, or is private: check the id, or set HF_TOKEN")
    if hub.EntryNotFoundError.__name__ in kinds and hub.LocalEntryNotFoundError.__name__ not in kinds:
        return ConfigurationError(f"{name} has no diffusers pipeline in safetensors there: {text}")
    if model.variant and "variant" in text:
        return ConfigurationError(f"spec.model.variant: {model.variant!r} is not in {model.name!r}: {text}")
    return UnavailableError(
        f"{name} is neither in this machine's cache nor reachable on the hub: check the network (or HF_ENDPOINT, "
        f"HF_HUB_OFFLINE), or name a folder ({type(error).__name__})"
    )


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the adapter as diffusers reads it: `pipe.load_lora_weights(folder)`."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    config = policy.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(policy.unet)),
        unet_lora_adapter_metadata={key: sorted(v) if isinstance(v, set) else v for key, v in config.items()},
    )
