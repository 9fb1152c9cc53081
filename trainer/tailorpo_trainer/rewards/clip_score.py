"""The similarity of a picture and its prompt by a CLIP model: 100 times the cosine of their embeddings.

Source: Hessel et al. 2021, "CLIPScore", whose score is 2.5 max(cos, 0). This one is 100 cos, the scale of torchmetrics,
and is not clamped at 0, so that a bad picture still has a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tailorpo_trainer.errors import ConfigurationError, TailorPOError
from tailorpo_trainer.places import local_path, missing_path

Found = TypeVar("Found")

CACHED_PROMPTS = 10_000
"""Size of the cache of text embeddings, which is cleared when it is full. With 768 floats each, this is 31 MB."""

RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""From Pillow's numbers, as in an image processor's configuration, to torch's names."""


@dataclass(frozen=True)
class Preprocessing:
    """A differentiable CLIPImageProcessor on tensors; unlike there, resized pixels are not rounded to 8 bits.

    resize: length of the shorter side, or (height, width); None: not resized. crop: (height, width) or None.
    """

    resize: int | tuple[int, int] | None
    mode: str
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, config: dict[str, Any]) -> Preprocessing:
        """From `preprocessor_config.json`, with CLIPImageProcessor's defaults; `KeyError` for other configurations."""
        size, crop = config.get("size", 224), config.get("crop_size", 224)
        if isinstance(size, dict):
            size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        return cls(
            size if config.get("do_resize", True) else None,
            RESAMPLING[config.get("resample", 3)],
            crop if config.get("do_center_crop", True) else None,
            tuple(config.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
            tuple(config.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised pictures [n, 3, h, w] of `images`, float [n, 3, H, W] in [0, 1]."""
        height, width = images.shape[2:]
        size = self.resize
        if isinstance(size, int):
            short = min(height, width)
            size = (int(size * height / short), int(size * width / short))
        if size is not None and size != (height, width):
            # The width first, then the height, as in Pillow, which clips to the range of pixels after each.
            for step in ((height, size[1]), size):
                images = F.interpolate(images, step, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            images = _centre_crop(images, *self.crop)
        return (images - images.new_tensor(self.mean).view(3, 1, 1)) / images.new_tensor(self.std).view(3, 1, 1)


def _centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The central `height` x `width` pixels of the pictures, padded with black where they are smaller."""
    above, left = height - images.shape[2], width - images.shape[3]
    if above > 0 or left > 0:
        above, left = max(above, 0), max(left, 0)
        images = F.pad(images, (left - left // 2, left // 2, above - above // 2, above // 2))
    top, side = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, side : side + width]


class ClipScore:
    """100 cos(picture, prompt) of a `transformers.CLIPModel`, which stays frozen and in float32.

    `model` is a folder or a hub id, None the tiny scorer of this package; only safetensors are read. Raises
    `ConfigurationError` if it cannot be loaded. Prompts longer than the model's context are truncated.
    """

    name = "clip-score"
    differentiable = True
    unit = "100 x cosine"

    def __init__(self, device: torch.device | str = "cpu", model: str | None = None) -> None:
        if model is None:
            from tailorpo_trainer.tiny_animals import SCORER

            model = str(SCORER)
        self._clip, self._tokenizer, self._preprocess = _load(model)
        self._clip.requires_grad_(False).eval().to(device)
        self._texts: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 [n] in [-100, 100], of `images`, float32 [n, 3, H, W] in [0, 1]."""
        pictures = self.features(images)
        return 100 * (pictures * self._embed(prompts).to(pictures.device)).sum(-1)

    def features(self, images: Tensor) -> Tensor:
        """Embeddings of pictures, float32 [n, d] of unit length."""
        features = self._clip.get_image_features(pixel_values=self._preprocess(images))
        return F.normalize(_embedding(features), dim=-1)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings, float32 [n, d] of unit length, cached for each prompt."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if len(self._texts) + len(new) > CACHED_PROMPTS:
            self._texts.clear()
            new = list(dict.fromkeys(prompts))
        if new:
            window = self._clip.config.text_config.max_position_embeddings
            tokens = self._tokenizer(new, padding=True, truncation=True, max_length=window, return_tensors="pt")
            with torch.no_grad():
                ids, mask = (tokens[key].to(self._clip.device) for key in ("input_ids", "attention_mask"))
                texts = _embedding(self._clip.get_text_features(input_ids=ids, attention_mask=mask))
                self._texts.update(zip(new, F.normalize(texts, dim=-1), strict=True))
        # `stack` copies: tensors made under inference_mode cannot be saved for a backward pass.
        return torch.stack([self._texts[prompt] for prompt in prompts])


def _embedding(features: Any) -> Tensor:
    """transformers 5 returns an output object, version 4 the embedding itself."""
    embedding = features if isinstance(features, Tensor) else features.pooler_output
    assert isinstance(embedding, Tensor)
    return embedding


def check_model(model: str) -> None:
    """Raise the `ConfigurationError` that loading would, as far as the model's `config.json` shows it."""
    _translated(model, _check_kind)


def _load(model: str) -> tuple[Any, Any, Preprocessing]:
    """Model, tokenizer and preprocessing; every failure becomes a `ConfigurationError`."""
    return _translated(model, _read)


def _translated(model: str, read: Callable[[str], Found]) -> Found:
    """The result of `read`; every failure of a library becomes a `ConfigurationError`."""
    is_folder = Path(model).is_dir()
    if not is_folder and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
        raise ConfigurationError(
            f"model: {model!r} is no folder here and no hub id: give a CLIPModel's folder, "
            "or an id such as 'openai/clip-vit-large-patch14'"
        )
    why = None if is_folder else "is a file" if local_path(model) else missing_path(model)
    if why is not None:
        raise ConfigurationError(f"model: {model!r} {why}: give a CLIPModel's folder, or a hub id")
    try:
        return read(model)
    except (TailorPOError, MemoryError):
        raise
    except Exception as error:  # the libraries raise many types
        where = "this folder" if is_folder else "the hub (no such folder is here)"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"model: {model!r} cannot be loaded from {where}: clip-score needs a CLIPModel's "
            f"config.json, model.safetensors, preprocessor_config.json and tokenizer ({reason[:300]})"
        ) from error


def _read(model: str) -> tuple[Any, Any, Preprocessing]:
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    _check_kind(model)
    clip, report = CLIPModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:  # from_pretrained only warns here too
        raise ConfigurationError(
            f"model: {model!r} lacks {len(missing)} of a CLIPModel's weights, such as {missing[0]}: give a complete one"
        )
    tokenizer = AutoTokenizer.from_pretrained(model)
    _check_end(model, clip.config.text_config.eos_token_id, tokenizer)
    return clip, tokenizer, Preprocessing.read(ImageProcessingMixin.get_image_processor_dict(model)[0])


def _check_kind(model: str) -> None:
    from transformers import PretrainedConfig

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise FileNotFoundError("it has no config.json")
    kind = PretrainedConfig.get_config_dict(model)[0].get("model_type")
    if kind != "clip":  # from_pretrained would only warn, and leave the weights random
        raise ConfigurationError(f"model: {model!r} is of type {kind!r}: clip-score needs one of type 'clip'")


def _check_end(model: str, end: int, tokenizer: Any) -> None:
    """Raise `ConfigurationError` if model and tokenizer differ in the end token, where the embedding is read."""
    ids = tokenizer("a picture").input_ids
    # For end token 2, which is wrong in OpenAI's own files, transformers takes the token with the highest id.
    read = max(ids) if end == 2 else end
    if read not in ids or read != tokenizer.eos_token_id:
        raise ConfigurationError(
            f"model: {model!r} looks for its end token at id {read}, its tokenizer writes "
            f"{tokenizer.eos_token_id}: set text_config.eos_token_id in config.json to the tokenizer's"
        )
