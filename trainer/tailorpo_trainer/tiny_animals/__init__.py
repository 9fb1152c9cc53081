"""`tiny-animals`: a text-to-image model small enough for a laptop's CPU, its scorer and its judge.

This package has only names and paths, so importing it loads neither torch nor Pillow. The README beside
this file is the model card; `python -m tools.tiny_animals.make`, in a checkout of the project, rebuilds every weight
from one font.
"""

from pathlib import Path

ROOT = Path(__file__).parent
PIPELINE = ROOT / "pipeline"
"""A stock `diffusers.StableDiffusionPipeline` folder, 64x64 pictures."""
SCORER = ROOT / "scorer"
"""A `transformers.CLIPModel` folder with image processor and tokenizer: the similarity of a picture and a caption."""
SCORING_DECODER = ROOT / "scoring-decoder"
"""A `diffusers.AutoencoderTiny` folder: decodes the pipeline's latents at a fraction of its decoder's cost."""
JUDGE = ROOT / "judge"
"""A `transformers.ResNetForImageClassification` folder: recognises the animal. For evaluation, never a reward."""

SIZE = 64
"""Side of every picture in pixels."""

ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird",
    "cow", "lion", "tiger", "bear", "fox", "beetle", "butterfly", "fish",
    "whale", "mouse", "turtle", "frog", "chicken", "duck", "bee", "pig",
)  # fmt: skip
"""The animals that the pipeline can draw: the most distinctive of the 45 that the field's prompt sets use."""

GROUNDS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
"""Colours of the background that a caption may name."""

__all__ = ["ANIMALS", "GROUNDS", "JUDGE", "PIPELINE", "ROOT", "SCORER", "SCORING_DECODER", "SIZE"]
