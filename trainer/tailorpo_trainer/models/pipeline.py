"""Load a diffusers pipeline from a folder, S3 or the hub."""

import os
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import s3
from tailorpo_trainer.models import components, sources
from tailorpo_trainer.models.hub import pipeline_error
from tailorpo_trainer.spec.job import Model


def load_pipeline(model: Model) -> Any:
    """A diffusers pipeline by shipped name, folder, S3 prefix or hub id; float32, without a safety checker.

    Raises `ConfigurationError`, `DataError`, `ResourceError` or `UnavailableError`.
    """
    source = sources.locate(model)
    silence_libraries()
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
            # Not used in training, and more than 1 GB: as None, it is not even downloaded.
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except Exception as error:  # the libraries raise many types
        raise pipeline_error(model, isinstance(source, Path), error) from None
    components.check(pipeline, model)
    return pipeline


def check_source(model: Model) -> None:
    """Raise what `load_pipeline` would, as far as that can be known without weights."""
    source = sources.locate(model)
    silence_libraries()
    sources.check_index(source / sources.INDEX if isinstance(source, Path) else _index(model), model)
    if not model.name.startswith(s3.SCHEME):
        files = sources.files_of(source) if isinstance(source, Path) else _files(model)
        if files is not None:
            sources.check_files(files, model)


def _index(model: Model) -> Path:
    """The pipeline's index from the hub: the first request to the hub, so most errors appear here."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.name, sources.INDEX, revision=model.revision))
    except Exception as error:
        raise pipeline_error(model, False, error) from None


def _files(model: Model) -> set[str] | None:
    """The names of a hub repository's files; None if the hub is unreachable, since a cached copy has no such list."""
    from huggingface_hub import list_repo_files

    try:
        return set(list_repo_files(model.name, revision=model.revision))
    except Exception:
        return None


def silence_libraries() -> None:
    """Turn off warnings and progress bars of the libraries; their exceptions are still raised."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
