"""Locate a pipeline's files, and check that they are a model that can be trained. Imports no torch."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tailorpo_trainer import s3
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.places import local_path, missing_path
from tailorpo_trainer.spec.job import Model
from tailorpo_trainer.untrusted import read_json

SHIPPED = "tiny-animals"
INDEX = "model_index.json"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
SMALL = {
    "unet": [["config.json"]],
    "vae": [["config.json"]],
    "text_encoder": [["config.json"]],
    "tokenizer": [["vocab.json", "merges.txt"], ["tokenizer.json"]],
    "scheduler": [["scheduler_config.json"]],
}
"""The small files of each component; one of each list of alternatives is required."""


def locate(model: Model) -> Path | str:
    """A local folder, or the hub id unchanged. An S3 prefix becomes a local copy of its files without weights."""
    name = model.name
    if name == SHIPPED:
        from tailorpo_trainer import tiny_animals

        return _folder(model, tiny_animals.PIPELINE)
    if name.startswith(s3.SCHEME):
        return _folder(model, copy(model, weights=False))
    folder = local_path(name)
    if folder is not None and folder.is_dir():
        return _folder(model, folder)
    if folder is not None:
        raise ConfigurationError(
            f"spec.model.name: {name!r} is a file: give the folder of a diffusers pipeline, as save_pretrained writes "
            "it (StableDiffusionPipeline.from_single_file reads a single file)"
        )
    why = missing_path(name) or (None if name.count("/") == 1 else "is no folder here")
    if why is not None:
        raise ConfigurationError(
            f"spec.model.name: {name!r} {why}; give {SHIPPED!r}, a folder with a {INDEX}, an s3:// prefix "
            "of one, or a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'"
        )
    return name


def _folder(model: Model, folder: Path) -> Path:
    if model.revision is not None:
        raise ConfigurationError(
            f"spec.model.revision: {model.revision!r}: only models on the hub have revisions, and {model.name!r} is "
            "none: remove it"
        )
    if not (folder / INDEX).is_file():
        raise ConfigurationError(f"spec.model.name: {model.name!r} is no diffusers pipeline: the folder has no {INDEX}")
    return folder


def copy(model: Model, weights: bool) -> Path:
    """A copy of an S3 prefix in the user's cache, of only those files that loading this variant needs."""
    remote = s3.Remote(model.name, f"spec.model.name: {model.name!r}")
    if INDEX not in remote.objects:
        raise ConfigurationError(f"spec.model.name: {model.name!r} is no diffusers pipeline: it has no {INDEX} there")
    wanted = [INDEX]
    for name in sorted(remote.objects):
        folder, _, file = name.partition("/")
        if folder in COMPONENTS and "/" not in file and file.endswith((".json", ".txt")):
            wanted.append(name)
    if weights:
        wanted += check_files(remote.objects.keys(), model)
    return remote.copy(wanted)


def check_files(names: Collection[str], model: Model) -> list[str]:
    """The weight files to load, from the names of a pipeline's files; `ConfigurationError` if a file is missing."""
    weights = choose_weights(names, model)
    # Without its files, transformers would create a tokenizer with an empty vocabulary.
    for component, choices in SMALL.items():
        if not any(all(f"{component}/{file}" in names for file in files) for files in choices):
            raise ConfigurationError(
                f"spec.model.name: {model.name!r} has no {component}/{choices[0][0]}: give a whole diffusers pipeline"
            )
    return weights


def files_of(folder: Path) -> set[str]:
    """The names of the files in a folder's subfolders, such as `unet/config.json`."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}


def choose_weights(names: Iterable[str], model: Model) -> list[str]:
    """The weight files that diffusers would load: for each component those of the variant, or those of no variant.

    Raises `ConfigurationError` if a component has neither, or if no component has the variant.
    """
    weights: dict[str, dict[str, list[str]]] = {component: {} for component in WEIGHTED}
    pickled = set()
    for name in sorted(names):
        component, _, file = name.partition("/")
        if component in weights and (match := WEIGHTS.fullmatch(file)):
            weights[component].setdefault(match["variant"] or "", []).append(name)
        elif component in weights and file.endswith((".bin", ".pt", ".ckpt")):
            pickled.add(component)
    wanted = model.variant or ""
    available = sorted({variant for found in weights.values() for variant in found if variant})
    if wanted and wanted not in available:
        raise ConfigurationError(
            f"spec.model.variant: {wanted!r} is not in {model.name!r}: "
            + (f"it has {', '.join(available)}" if available else "it has no variants: remove it")
        )
    chosen = []
    for component, found in weights.items():
        files = found.get(wanted) or found.get("")
        if not files:
            raise ConfigurationError(
                f"spec.model.name: {model.name!r} has no weights of its {component} in safetensors"
                + (f" but those of variant {' and '.join(sorted(found))}: set spec.model.variant" if found else "")
                + (
                    ", only pickles, which are not loaded: save it again by save_pretrained"
                    if component in pickled and not found
                    else ""
                )
            )
        chosen += files
    return chosen


WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>[^.]+?))?(-\d{5}-of-\d{5})?\.safetensors")


def check_index(file: Path, model: Model) -> None:
    """Raise `ConfigurationError` for a pipeline of another family, `DataError` for a damaged index."""
    name = f"spec.model.name: {model.name!r}"
    try:
        index: Any = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {INDEX}: {error}") from None
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise DataError(f"{name} cannot be read: {INDEX} names no pipeline class")
    components = {component for component, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    if not components.issuperset(COMPONENTS) or components & {"text_encoder_2", "transformer", "prior", "vocoder"}:
        raise unsupported_pipeline(model, index["_class_name"])


def unsupported_pipeline(model: Model, kind: str, reason: str = "") -> ConfigurationError:
    """The error for a pipeline of class `kind`, which cannot be trained."""
    return ConfigurationError(
        f"spec.model.name: {model.name!r} is a {kind}{reason}: Stable Diffusion 1.x and 2.x text-to-image pipelines "
        "can be trained"
    )
