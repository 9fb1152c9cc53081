"""Configurations of well-known models, so that their cost can be estimated offline.

The values are those of the `config.json` files of the named hub repositories, without the fields that equal diffusers'
defaults (those of Stable Diffusion 1). They determine the FLOPs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tailorpo_trainer import models
from tailorpo_trainer.errors import ConfigurationError, DataError, UnavailableError
from tailorpo_trainer.spec.job import Model, Sampling
from tailorpo_trainer.untrusted import read_json

Values = Mapping[str, Any]

CLIP_L: Values = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
OPEN_CLIP_H: Values = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
}
UNET_1: Values = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
}
UNET_2: Values = {
    **UNET_1,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE: Values = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TAESD: Values = {"_class_name": "AutoencoderTiny", "latent_channels": 4}
"""Configuration of the repository `TINY`; all other fields equal diffusers' defaults."""
TINY = "madebyollin/taesd"
SCHEDULER: Values = {
    "beta_start": 0.00085,
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Architecture:
    """The configurations of a pipeline's components, as in their `config.json` files.

    Attributes:
        name: for people, such as `Stable Diffusion 1.5`.
        tokens: length to which every prompt is padded.
        scoring_decoder: configuration of the document's scoring decoder, if it has one.
    """

    name: str
    unet: Values
    vae: Values = field(default_factory=lambda: VAE)
    text_encoder: Values = field(default_factory=lambda: CLIP_L)
    scheduler: Values = field(default_factory=lambda: SCHEDULER)
    tokens: int = 77
    scoring_decoder: Values | None = None

    @property
    def scale(self) -> int:
        """Pixels along one side of a latent element."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    def latent_sides(self, sampling: Sampling) -> tuple[int, int]:
        """Height and width of the sampled latents."""
        own = self.unet["sample_size"]
        sides = (own, own) if isinstance(own, int) else own
        requested = (sampling.height, sampling.width)
        height, width = (
            pixels // self.scale if pixels else int(side) for pixels, side in zip(requested, sides, strict=True)
        )
        return height, width

    def pixels(self, sampling: Sampling) -> int:
        """Height times width of a picture."""
        height, width = self.latent_sides(sampling)
        return height * width * self.scale**2


def _stable_diffusion_2(name: str, side: int, prediction: str) -> Architecture:
    scheduler = {**SCHEDULER, "prediction_type": prediction}
    return Architecture(name, {**UNET_2, "sample_size": side}, text_encoder=OPEN_CLIP_H, scheduler=scheduler)


SD14 = Architecture("Stable Diffusion 1.4", UNET_1)
SD15 = Architecture("Stable Diffusion 1.5", UNET_1)
SD20 = _stable_diffusion_2("Stable Diffusion 2.0", 96, "v_prediction")
SD20_BASE = _stable_diffusion_2("Stable Diffusion 2.0 base", 64, "epsilon")
SD21 = _stable_diffusion_2("Stable Diffusion 2.1", 96, "v_prediction")
SD21_BASE = _stable_diffusion_2("Stable Diffusion 2.1 base", 64, "epsilon")

KNOWN: dict[str, Architecture] = {
    "CompVis/stable-diffusion-v1-4": SD14,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD15,
    "sd-legacy/stable-diffusion-v1-5": SD15,
    "runwayml/stable-diffusion-v1-5": SD15,
    # Stability AI took its 2.x repositories down in November 2025 (huggingface/diffusers#12874); `sd2-community`
    # hosts the same files. Both names are known, for old documents and local caches.
    **{
        f"{owner}/{name}": architecture
        for owner in ("sd2-community", "stabilityai")
        for name, architecture in {
            "stable-diffusion-2": SD20,
            "stable-diffusion-2-base": SD20_BASE,
            "stable-diffusion-2-1": SD21,
            "stable-diffusion-2-1-base": SD21_BASE,
        }.items()
    },
}
"""Architectures by hub id that need no network access."""

FILES = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


def find(model: Model) -> Architecture:
    """The architecture of a document's model: from its folder, from `KNOWN`, or from the hub's small files.

    Raises `ConfigurationError`, `DataError` or `UnavailableError` if it cannot be read.
    """
    found, decoder = _find_pipeline(model), model.scoring_decoder
    if decoder is None:
        return found
    known = decoder.name == TINY and not Path(TINY).is_dir()
    config = TAESD if known else models.read_config(decoder)
    models.check_decoder(decoder, config, found.vae, found.scale)
    return replace(found, scoring_decoder=config)


def _find_pipeline(model: Model) -> Architecture:
    if model.name in KNOWN and not Path(model.name).is_dir():
        return KNOWN[model.name]
    source = models.locate(model)
    if isinstance(source, Path):
        return _read(model.name, {component: source / file for component, file in FILES.items()}, source)
    return _read(model.name, {component: _download(model, file) for component, file in FILES.items()}, None)


def _read(name: str, files: Mapping[str, Path], folder: Path | None) -> Architecture:
    values: dict[str, Any] = {}
    for component, file in files.items():
        try:
            values[component] = read_json(file)
        except (OSError, ValueError) as error:
            raise DataError(f"spec.model.name: {name!r} cannot be read: {FILES[component]}: {error}") from None
        if not isinstance(values[component], dict):
            raise DataError(f"spec.model.name: {name!r} cannot be read: {FILES[component]}: is not a JSON object")
    if "num_hidden_layers" not in values["text_encoder"] or "block_out_channels" not in values["unet"]:
        raise ConfigurationError(
            f"spec.model.name: {name!r}: pipelines with a UNet and a CLIP text encoder, as Stable Diffusion 1.x and "
            "2.x, can be estimated"
        )
    tokens = int(values["text_encoder"].get("max_position_embeddings", 77))
    if folder is not None:
        tokens = min(tokens, _tokenizer_length(folder / "tokenizer" / "tokenizer_config.json", tokens))
    return Architecture(name=name, tokens=tokens, **values)


def _tokenizer_length(file: Path, default: int) -> int:
    try:
        return int(read_json(file).get("model_max_length", default))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return default


def _download(model: Model, file: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    try:
        return Path(hf_hub_download(model.name, file, revision=model.revision))
    except Exception as error:  # the hub's client and the network raise many types
        # Without a network, a file that is not cached raises a subclass of EntryNotFoundError too.
        offline = isinstance(error, errors.LocalEntryNotFoundError) or not isinstance(error, absent)
        raise (UnavailableError if offline else ConfigurationError)(
            f"spec.model.name: {model.name!r}: {file} cannot be read from the hub ({type(error).__name__}); without a "
            f"network, give a folder, {models.SHIPPED!r} or one of {', '.join(KNOWN)}"
        ) from None
