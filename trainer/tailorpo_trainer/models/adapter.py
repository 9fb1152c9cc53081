"""The LoRA that is trained: made, begun from an existing one, written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import s3
from tailorpo_trainer.diffusion.noise import Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.errors import FULL, ConfigurationError, DataError, ResourceError
from tailorpo_trainer.models.hub import explain_hub, one_line
from tailorpo_trainer.models.sources import here
from tailorpo_trainer.spec.job import LoRA, TrainingSpec

FILE = "pytorch_lora_weights.safetensors"


def attach_adapter(unet: Any, run: TrainingSpec) -> None:
    """Add a LoRA to the denoiser: A Gaussian, B zero, so that it begins as the base model (Hu et al. 2021)."""
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
    """Set the adapter to an existing one, which must be of the document's rank, alpha and modules."""
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    subject = f"spec.lora.initial: {source!r}"
    state, alphas, metadata = _read(_find(source, subject), subject)
    if any(key.startswith("text_encoder") for key in state):
        raise ConfigurationError(f"{subject} adapts the text encoder too: give a LoRA of the denoiser alone")
    state = dict(convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in state.items()}))
    ours = get_peft_model_state_dict(unet)
    if unknown := sorted(state.keys() - ours.keys()):
        raise ConfigurationError(
            f"{subject} has weights that this adapter has not, such as {unknown[0]}: set spec.lora.targetModules to "
            "the modules it adapts, or give a LoRA of this model"
        )
    # A is [rank, inputs], B is [outputs, rank].
    if ranks := {value.shape[0] for key, value in state.items() if ".lora_A." in key} - {lora.rank}:
        raise ConfigurationError(f"spec.lora.rank: is {lora.rank}, but {source!r} has rank {_listed(ranks)}")
    scales = {*alphas, *(float(metadata[key]) for key in ("lora_alpha",) if key in metadata)}
    if scales - {lora.alpha}:
        raise ConfigurationError(
            f"spec.lora.alpha: is {lora.alpha:g}, but {source!r} was trained with alpha {_listed(scales)}"
        )
    if strange := [key for key in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if metadata.get(key)]:
        raise ConfigurationError(f"{subject} is no plain LoRA: it was made with {strange[0]}")
    for key, value in state.items():
        if value.shape != ours[key].shape:
            raise ConfigurationError(
                f"{subject} is a LoRA of another model: {key} is {list(value.shape)}, not {list(ours[key].shape)}"
            )
        if not value.isfinite().all():
            raise DataError(f"{subject} holds NaN or infinite weights, such as {key}")
    set_peft_model_state_dict(unet, state)


def _find(source: str, subject: str) -> Path:
    """The one file of weights in a folder, S3 prefix or hub repository, or the file itself, on this machine."""
    if source.startswith(s3.SCHEME):
        remote = s3.Remote(source, subject)
        return remote.copy([name := _only(list(remote.objects), subject)]) / ("" if remote.is_object else name)
    if (path := here(source)) is not None:
        name = _only([file.name for file in path.iterdir()] if path.is_dir() else [path.name], subject)
        return path / name if path.is_dir() else path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigurationError(f"{subject} is no file or folder here: give one with a {FILE}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, FILE))
    except Exception as error:  # whatever the hub's client and the network raise
        raise explain_hub("spec.lora.initial", source, error) from None


def _only(names: list[str], subject: str) -> str:
    if FILE in names:
        return FILE
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not found:
        raise ConfigurationError(f"{subject} has no safetensors file, such as {FILE}")
    if len(found) > 1:
        raise ConfigurationError(f"{subject} has several LoRAs: name one file, such as {found[0]}")
    return found[0]


def _read(file: Path, subject: str) -> tuple[dict[str, torch.Tensor], set[float], Mapping[str, Any]]:
    """Weights by diffusers' names, the alphas in the file, and what `save_adapter` wrote beside them."""
    from diffusers import StableDiffusionPipeline
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{subject} cannot be read: {one_line(error)}") from None
    if strange := [name for name in names if "lora" not in name and not name.endswith(".alpha")]:
        raise ConfigurationError(f"{subject} is no LoRA: it holds {strange[0]}")
    if not names:
        raise ConfigurationError(f"{subject} is no LoRA: it is empty")
    if any("dora_scale" in name for name in names):
        raise ConfigurationError(f"{subject} is a DoRA, not a plain LoRA")
    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{subject} cannot be read as a LoRA: {one_line(error)}") from None
    values = {float(value) for value in (alphas or {}).values()}
    values |= {float(state.pop(key)) for key in list(state) if key.endswith(".alpha")}
    return state, values, {key.removeprefix("unet."): value for key, value in (metadata or {}).items()}


def _listed(values: set[Any]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def save_adapter(policy: Policy, folder: Path) -> None:
    """Write the adapter as diffusers reads it: `pipe.load_lora_weights(folder)`."""
    from peft import get_peft_model_state_dict

    _save(get_peft_model_state_dict(policy.unet), policy.unet.peft_config["default"], folder)


def export_adapter(weights: Mapping[str, torch.Tensor], lora: LoRA, folder: Path) -> None:
    """The same from the weights of `Policy.adapter()` alone, without the model that they were trained on."""
    _save({name.replace(".default.", "."): value for name, value in weights.items()}, _config(lora), folder)


def _save(weights: Mapping[str, torch.Tensor], config: Any, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from safetensors import SafetensorError

    try:
        StableDiffusionPipeline.save_lora_weights(
            str(folder),
            unet_lora_layers=convert_state_dict_to_diffusers(dict(weights)),
            unet_lora_adapter_metadata={
                key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
            },
        )
    except SafetensorError as error:  # the one word of the system's error is in its text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or int(number[1]) not in FULL:
            raise
        why = os.strerror(int(number[1]))
        raise ResourceError(f"{folder}: not written, the disk or quota is full ({why})") from None
