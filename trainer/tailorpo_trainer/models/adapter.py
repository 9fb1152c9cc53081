"""The LoRA adapter: attached to the denoiser, initialised, and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import files
from tailorpo_trainer.diffusion.noise import Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.models import lora_files
from tailorpo_trainer.models.lora_files import FILE
from tailorpo_trainer.spec.job import LoRA, TrainingSpec


def attach_adapter(unet: Any, run: TrainingSpec) -> None:
    """Add a LoRA to the denoiser: A Gaussian, B zero, so that it starts as the base model (Hu et al. 2021)."""
    config = _config(run.lora)
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
        _load_initial(unet, run.lora, run.lora.initial)


def _config(lora: LoRA) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, init_lora_weights="gaussian", target_modules=list(lora.target_modules)
    )


def _load_initial(unet: Any, lora: LoRA, source: str) -> None:
    """Copy an existing LoRA of the document's rank and modules into the adapter, rescaled to the document's alpha."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    subject = f"spec.lora.initial: {source!r}"
    found = lora_files.read(source)
    own = get_peft_model_state_dict(unet)
    if unknown := sorted(found.weights.keys() - own.keys()):
        raise ConfigurationError(
            f"{subject} has weights that this adapter has not, such as {unknown[0]}: set spec.lora.targetModules to "
            "the modules it adapts, or give a LoRA of this model"
        )
    # A is [rank, inputs], B is [outputs, rank].
    if ranks := {len(value) for key, value in found.weights.items() if ".lora_A." in key and value.dim()} - {lora.rank}:
        listed = ", ".join(map(str, sorted(ranks)))
        raise ConfigurationError(f"spec.lora.rank: is {lora.rank}, but {source!r} has rank {listed}")
    # Files with older names and no alpha have always been read as if their alpha were the document's.
    alpha = found.alpha or (lora.rank if found.scale_is_1 else lora.alpha)
    state = {key: _scaled(key, value.to(own[key].dtype), alpha, lora.alpha) for key, value in found.weights.items()}
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ConfigurationError(
                f"{subject} is a LoRA of another model: {key} is {list(value.shape)}, not {list(own[key].shape)}"
            )
        if not value.isfinite().all():
            raise DataError(f"{subject} holds NaN or infinite weights, such as {key}")
    set_peft_model_state_dict(unet, state)


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the adapter into a folder for `pipe.load_lora_weights(folder)`; `ResourceError` if the disk is full."""
    _save(policy.adapter(), policy.unet.peft_config["default"], folder)


def export_adapter(weights: Mapping[str, torch.Tensor], lora: LoRA, folder: Path) -> None:
    """As `save_adapter`, from the weights of `Policy.adapter()` without the model that they were trained on."""
    _save(weights, _config(lora), folder)


def _save(weights: Mapping[str, torch.Tensor], config: Any, folder: Path) -> None:
    """Write the layout that all readers understand in the same way: PEFT's names for all modules, alpha folded into B.

    diffusers has older names for attention only, and its reader infers the naming of all tensors from the first one.
    Alpha is not among the tensors, and readers that ignore the header take it to be equal to the rank.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    # Only what readers need: diffusers builds a `LoraConfig` of it, whose fields differ between versions.
    fields = {"lora_alpha": config.r, "r": config.r, "target_modules": sorted(config.target_modules)}
    metadata = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps({f"unet.{key}": value for key, value in fields.items()}),
    }
    layers = {
        "unet." + name.replace(".default.", "."): _scaled(name, value.detach().cpu(), config.lora_alpha, config.r)
        for name, value in weights.items()
    }
    files.replace(folder / FILE, _pack(layers, metadata))


def _scaled(name: str, value: torch.Tensor, alpha: float, to: float) -> torch.Tensor:
    """A LoRA weight, converted from one alpha to another: B is scaled with one rounding, A stays."""
    return (value.double() * alpha / to).to(value.dtype) if ".lora_B." in name else value


def _pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with reproducible bytes: the library writes the header's metadata in arbitrary order."""
    from safetensors.torch import save

    data = save({name: value.contiguous() for name, value in tensors.items()}, dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])
