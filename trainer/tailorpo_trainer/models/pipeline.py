"""A diffusers pipeline from wherever it is."""

import os
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import s3
from tailorpo_trainer.models import sources
from tailorpo_trainer.models.hub import explain
from tailorpo_trainer.spec.job import Model


def load_pipeline(model: Model) -> Any:
    """A diffusers pipeline by shipped name, folder, S3 prefix or hub id, in float32, without a safety checker.

    Raises `ConfigurationError`, `DataError`, `ResourceError` or `UnavailableError` with one sentence.
    """
    source = sources.locate(model)
    quiet()
    from diffusers import DiffusionPipeline

    sources.check_index(source / sources.INDEX if isinstance(source, Path) else _index(model), model)
    if model.name.startswith(s3.SCHEME):
        source = sources.copy(model, weights=True)
    files = sources.files_of(source) if isinstance(source, Path) else _files(model)
    if files is not None:
        sources.check_files(files, model)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(source),
            revision=model.revision,
            variant=model.variant,
            dtype=torch.float32,
            use_safetensors=True,
            # A gigabyte that training never asks; given here, it is not even downloaded.
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # the libraries raise a dozen kinds; each becomes one sentence
        raise explain(model, isinstance(source, Path), error) from None
    _check(pipeline, model)
    return pipeline


def _index(model: Model) -> Path:
    """The hub's table of a pipeline's parts: the first question to the hub, so most errors show here."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.name, sources.INDEX, revision=model.revision))
    except Exception as error:
        raise explain(model, False, error) from None


def _files(model: Model) -> set[str] | None:
    """The names of a hub repository's files; None if only a cached copy is to be had, whose list is not."""
    from huggingface_hub import list_repo_files

    try:
        return set(list_repo_files(model.name, revision=model.revision))
    except Exception:
        return None


def _check(pipeline: Any, model: Model) -> None:
    unet, kind = pipeline.unet, type(pipeline).__name__
    if type(unet).__name__ != "UNet2DConditionModel":
        raise sources.wrong_family(model, kind, f" with a {type(unet).__name__}")
    if (channels := unet.config.in_channels) != (latent := pipeline.vae.config.latent_channels):
        # Inpainting, editing and upscaling models see a second picture beside the latent.
        raise sources.wrong_family(model, kind, f" whose denoiser takes {channels} channels, not {latent}")
    if unet.config.class_embed_type is not None or unet.config.addition_embed_type is not None:
        raise sources.wrong_family(model, kind, " whose denoiser needs more than text")


def quiet() -> None:
    """Keep the libraries' own warnings and bars out of our output; their errors still raise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
