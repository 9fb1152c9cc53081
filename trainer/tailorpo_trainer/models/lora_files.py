"""Find and read an existing LoRA of the denoiser: a file of diffusers, of PEFT, of kohya's tools or of a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import s3
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.models.hub import hub_error, one_line
from tailorpo_trainer.places import local_path, missing_path
from tailorpo_trainer.untrusted import read_json

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."

NOT_PLAIN = ("use_rslora", "use_dora", "use_qalora", "alpha_pattern", "rank_pattern", "layer_replication", "lora_bias")
"""Fields of PEFT's `LoraConfig` that change what the weights mean, where they are set."""

CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of `init_lora_weights` that change the base model: the weights are no addition to the model as it is loaded."""


@dataclass(frozen=True)
class LoRAFile:
    """Weights by PEFT's names, such as `down_blocks.0.….to_q.lora_A.weight`, and their alpha.

    alpha: None if the file does not say it. scale_is_1: whether such a file means alpha = rank, as PEFT's names do in
    files of diffusers.
    """

    weights: dict[str, torch.Tensor]
    alpha: float | None
    scale_is_1: bool


def read(source: str) -> LoRAFile:
    """The LoRA that `spec.lora.initial` names: a file, or the folder, S3 prefix or hub repository that holds it.

    Raises `ConfigurationError` for another kind of adapter, `DataError` for a damaged one.
    """
    subject = f"spec.lora.initial: {source!r}"
    file = _local_file(source, subject)
    names = _names(file, subject)
    if file.name == PEFT_FILE or any(name.startswith(PEFT_PREFIX) for name in names):
        found = _read_peft(file, subject)
    else:
        found = _read_diffusers(file, names, subject)
    if any(key.startswith(("text_encoder", "text_model.")) for key in found.weights):
        raise ConfigurationError(f"{subject} adapts the text encoder too: give a LoRA of the denoiser alone")
    return found


def _local_file(source: str, subject: str) -> Path:
    """The local path of the weights: the only such file in a folder, S3 prefix or hub repository, or this file."""
    if source.startswith(s3.SCHEME):
        remote = s3.Remote(source, subject)
        name = _single_file(list(remote.objects), subject)
        copied = remote.copy([name, *(other for other in (PEFT_CONFIG,) if other in remote.objects)])
        return copied if remote.is_object else copied / name
    if (path := local_path(source)) is not None:
        name = _single_file([file.name for file in path.iterdir()] if path.is_dir() else [path.name], subject)
        return path / name if path.is_dir() else path
    why = missing_path(source, "file or folder") or (None if source.count("/") == 1 else "is no file or folder here")
    if why is not None:
        raise ConfigurationError(f"{subject} {why}: give one with a {FILE}")
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    absent = (LocalEntryNotFoundError, RemoteEntryNotFoundError)
    try:
        try:
            return Path(hf_hub_download(source, FILE))
        except absent as error:
            offline = isinstance(error, LocalEntryNotFoundError)  # then asking again would only take time
            try:
                hf_hub_download(source, PEFT_CONFIG, local_files_only=offline)
                return Path(hf_hub_download(source, PEFT_FILE, local_files_only=offline))
            except absent:
                raise error from None
    except Exception as error:  # the hub's client and the network raise many types
        raise hub_error("spec.lora.initial", source, error) from None


def _single_file(names: list[str], subject: str) -> str:
    for usual in (FILE, PEFT_FILE):
        if usual in names:
            return usual
    found = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if not found:
        raise ConfigurationError(f"{subject} has no safetensors file, such as {FILE}")
    if len(found) > 1:
        raise ConfigurationError(f"{subject} has several LoRAs: name one file, such as {found[0]}")
    return found[0]


def _names(file: Path, subject: str) -> list[str]:
    """The names of a file's tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise DataError(f"{subject} cannot be read: {one_line(error)}") from None
    if not names:
        raise ConfigurationError(f"{subject} is no LoRA: it is empty")
    return names


def _read_peft(file: Path, subject: str) -> LoRAFile:
    """What `PeftModel.save_pretrained` writes: the weights, and beside them the configuration with their alpha."""
    from safetensors.torch import load_file

    path = file.with_name(PEFT_CONFIG)
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{subject} is in PEFT's format and has no {PEFT_CONFIG} beside it, which holds its alpha: give the folder "
            "that save_pretrained has written"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{subject} cannot be read: {PEFT_CONFIG}: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise DataError(f"{subject} cannot be read: {PEFT_CONFIG} is no object")
    if (kind := config.get("peft_type")) != "LORA":
        raise ConfigurationError(f"{subject} is PEFT's {kind}, and only a LoRA can be trained on")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < float("inf"):
        raise DataError(f"{subject} cannot be read: lora_alpha of {PEFT_CONFIG} is {alpha!r}")
    weights = load_file(file)
    _check_plain(config, weights.keys(), subject)
    initialised = str(config.get("init_lora_weights")).lower()
    if initialised.startswith(CHANGES_THE_MODEL):
        raise ConfigurationError(
            f"{subject} adds to a base model that {initialised} has changed, not to this one: save it again by "
            "save_pretrained with path_initial_model_for_weight_conversion"
        )
    names = {key: key.removeprefix(PEFT_PREFIX).removeprefix("unet.") for key in weights}
    return LoRAFile({names[key]: value for key, value in weights.items()}, float(alpha), scale_is_1=False)


def _read_diffusers(file: Path, names: list[str], subject: str) -> LoRAFile:
    """All other layouts that diffusers knows; its own and that of a run have the metadata of PEFT's configuration."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft

    _check_plain({}, names, subject)
    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{subject} cannot be read as a LoRA: {one_line(error)}") from None
    config = {key.removeprefix("unet."): value for key, value in (metadata or {}).items()}
    scales = {float(value) for value in (alphas or {}).values()}
    scales |= {float(state.pop(key)) for key in list(state) if key.endswith(".alpha")}
    scales |= {float(config[key]) for key in ("lora_alpha",) if key in config}
    if len(scales) > 1:
        listed = ", ".join(f"{value:g}" for value in sorted(scales))
        raise ConfigurationError(f"{subject} has several alphas ({listed}): give a LoRA that has one")
    _check_plain(config, (), subject)
    by_peft = all(".lora_A." in key or ".lora_B." in key for key in state)
    weights = dict(convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in state.items()}))
    return LoRAFile(weights, next(iter(scales), None), scale_is_1=by_peft)


def _check_plain(config: Mapping[str, Any], names: Collection[str], subject: str) -> None:
    """Raise `ConfigurationError` unless weights of these names, made with this configuration, are a plain LoRA's."""
    if config.get("use_dora") or any("dora_scale" in name or "lora_magnitude_vector" in name for name in names):
        raise ConfigurationError(f"{subject} is a DoRA, not a plain LoRA")
    if strange := [key for key in NOT_PLAIN if config.get(key)]:
        raise ConfigurationError(f"{subject} is no plain LoRA: it was made with {strange[0]}")
    if strange := [name for name in names if "lora" not in name and not name.endswith(".alpha")]:
        raise ConfigurationError(f"{subject} is no LoRA: it holds {strange[0]}")
