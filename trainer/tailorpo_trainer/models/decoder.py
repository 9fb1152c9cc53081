"""The scoring decoder: an `AutoencoderTiny` beside the pipeline, from a folder, S3 or the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import s3
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.models import hub, sources
from tailorpo_trainer.places import local_path, missing_path
from tailorpo_trainer.spec.job import ScoringDecoder
from tailorpo_trainer.untrusted import read_json

FIELD = "spec.model.scoringDecoder.name"
CLASS = "AutoencoderTiny"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SUITABLE = f"give an {CLASS} made for this model's latents, as 'madebyollin/taesd' is for Stable Diffusion 1.x and 2.x"


def load_decoder(decoder: ScoringDecoder) -> Any:
    """The decoder, float32. Raises `ConfigurationError`, `DataError`, `ResourceError` or `UnavailableError`."""
    read_config(decoder)
    folder, subject = _local_folder(decoder, [CONFIG, WEIGHTS]), _subject(decoder)
    from diffusers import AutoencoderTiny

    try:
        loaded, report = AutoencoderTiny.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # the libraries raise many types
        raise hub.local_error(subject, error) from None
    if missing := sorted(name for name in report["missing_keys"] if name.startswith("decoder.")):
        raise DataError(f"{subject} lacks {len(missing)} of a decoder's weights, such as {missing[0]}: {SUITABLE}")
    return loaded.to(torch.float32)


def check_decoder(decoder: ScoringDecoder, config: Mapping[str, Any], vae: Mapping[str, Any], scale: int) -> None:
    """Raise `ConfigurationError` unless the decoder reads the same latents as the pipeline's own decoder.

    config, vae: the configurations of both. scale: pixels along one side of a latent element. Scaling factors may
    differ, since each decoder divides latents by its own.
    """
    subject = _subject(decoder)
    if (channels := config["latent_channels"]) != (wanted := vae["latent_channels"]):
        raise ConfigurationError(
            f"{subject} decodes latents of {channels} channels, the model's have {wanted}: {SUITABLE}"
        )
    own = scale_of(config)
    if own != scale:
        raise ConfigurationError(
            f"{subject} makes pictures {own} times as wide as their latents, the model's own decoder {scale} times: "
            f"{SUITABLE}"
        )


def scale_of(config: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent element."""
    stages = len(config.get("decoder_block_out_channels", (64,) * 4))
    return int(config.get("upsampling_scaling_factor", 2) ** (stages - 1))


def read_config(decoder: ScoringDecoder) -> Mapping[str, Any]:
    """The decoder's `config.json`, which is enough to count its FLOPs. Raises as `load_decoder`."""
    file, subject = _local_folder(decoder, [CONFIG]) / CONFIG, _subject(decoder)
    try:
        config: Any = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{subject} cannot be read: {CONFIG}: {error}") from None
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind != CLASS:
        raise ConfigurationError(f"{subject} is {f'a {kind}' if kind else 'no model of diffusers'}: {SUITABLE}")
    return config


def _local_folder(decoder: ScoringDecoder, files: list[str]) -> Path:
    """The local folder with these files, which are downloaded first if necessary."""
    name, subject = decoder.name, _subject(decoder)
    if name != sources.SHIPPED and not name.startswith(s3.SCHEME) and local_path(name) is None:
        why = missing_path(name) or (None if name.count("/") == 1 else "is no folder here")
        if why is not None:
            raise ConfigurationError(
                f"{subject} {why}; give {sources.SHIPPED!r}, a folder or s3:// prefix with an {CLASS}, or "
                "a hub id such as 'madebyollin/taesd'"
            )
        return _download(decoder, files)
    if decoder.revision is not None:
        raise ConfigurationError(
            f"spec.model.scoringDecoder.revision: {decoder.revision!r}: only models on the hub have revisions, and "
            f"{name!r} is none: remove it"
        )
    if name.startswith(s3.SCHEME):
        remote = s3.Remote(name, subject)
        _require(set(remote.objects), files, subject)
        return remote.copy(files)
    if name == sources.SHIPPED:
        from tailorpo_trainer.tiny_animals import SCORING_DECODER

        return SCORING_DECODER
    folder = Path(name).expanduser()
    _require({path.name for path in folder.iterdir()} if folder.is_dir() else set(), files, subject)
    return folder


def _require(names: set[str], files: list[str], subject: str) -> None:
    if missing := [file for file in files if file not in names]:
        raise ConfigurationError(f"{subject} has no {missing[0]}: {SUITABLE}")


def _download(decoder: ScoringDecoder, files: list[str]) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return [Path(hf_hub_download(decoder.name, file, revision=decoder.revision)) for file in files][-1].parent
    except Exception as error:  # the hub's client and the network raise many types
        raise hub.hub_error(FIELD, decoder.name, error, decoder.revision) from None


def _subject(decoder: ScoringDecoder) -> str:
    return f"{FIELD}: {decoder.name!r}"
