"""The LoRA adapter: attached to the denoiser, initialised, and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import files, s3
from tailorpo_trainer.diffusion.noise import Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.models.hub import hub_error, one_line
from tailorpo_trainer.places import local_path, missing_path
from tailorpo_trainer.spec.job import LoRA, TrainingSpec

FILE = "pytorch_lora_weights.safetensors"


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
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    subject = f"spec.lora.initial: {source!r}"
    state, alphas, metadata = _read(_local_file(source, subject), subject)
    if any(key.startswith("text_encoder") for key in state):
        raise ConfigurationError(f"{subject} adapts the text encoder too: give a LoRA of the denoiser alone")
    by_peft = all(".lora_A." in key or ".lora_B." in key for key in state)
    state = dict(convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in state.items()}))
    own = get_peft_model_state_dict(unet)
    if unknown := sorted(state.keys() - own.keys()):
        raise ConfigurationError(
            f"{subject} has weights that this adapter has not, such as {unknown[0]}: set spec.lora.targetModules to "
            "the modules it adapts, or give a LoRA of this model"
        )
    # A is [rank, inputs], B is [outputs, rank].
    if ranks := {value.shape[0] for key, value in state.items() if ".lora_A." in key} - {lora.rank}:
        raise ConfigurationError(f"spec.lora.rank: is {lora.rank}, but {source!r} has rank {_join_numbers(ranks)}")
    scales = {*alphas, *(float(metadata[key]) for key in ("lora_alpha",) if key in metadata)}
    if len(scales) > 1:
        raise ConfigurationError(f"{subject} has several alphas ({_join_numbers(scales)}): give a LoRA that has one")
    if strange := [key for key in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if metadata.get(key)]:
        raise ConfigurationError(f"{subject} is no plain LoRA: it was made with {strange[0]}")
    # PEFT's names without an alpha mean scale 1, as `_save` writes them. Files with older names have always been read
    # as if their alpha were the document's.
    alpha = next(iter(scales), lora.rank if by_peft else lora.alpha)
    state = {key: _scaled(key, value.to(own[key].dtype), alpha, lora.alpha) for key, value in state.items()}
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ConfigurationError(
                f"{subject} is a LoRA of another model: {key} is {list(value.shape)}, not {list(own[key].shape)}"
            )
        if not value.isfinite().all():
            raise DataError(f"{subject} holds NaN or infinite weights, such as {key}")
    set_peft_model_state_dict(unet, state)


def _local_file(source: str, subject: str) -> Path:
    """The local path of the weights: the only such file in a folder, S3 prefix or hub repository, or this file."""
    if source.startswith(s3.SCHEME):
        remote = s3.Remote(source, subject)
        return remote.copy([name := _single_file(list(remote.objects), subject)]) / ("" if remote.is_object else name)
    if (path := local_path(source)) is not None:
        name = _single_file([file.name for file in path.iterdir()] if path.is_dir() else [path.name], subject)
        return path / name if path.is_dir() else path
    why = missing_path(source, "file or folder") or (None if source.count("/") == 1 else "is no file or folder here")
    if why is not None:
        raise ConfigurationError(f"{subject} {why}: give one with a {FILE}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, FILE))
    except Exception as error:  # the hub's client and the network raise many types
        raise hub_error("spec.lora.initial", source, error) from None


def _single_file(names: list[str], subject: str) -> str:
    if FILE in names:
        return FILE
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not found:
        raise ConfigurationError(f"{subject} has no safetensors file, such as {FILE}")
    if len(found) > 1:
        raise ConfigurationError(f"{subject} has several LoRAs: name one file, such as {found[0]}")
    return found[0]


def _read(file: Path, subject: str) -> tuple[dict[str, torch.Tensor], set[float], Mapping[str, Any]]:
    """Weights by diffusers' names, the alphas in the file, and the metadata that `save_adapter` writes."""
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


def _join_numbers(values: set[Any]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


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
