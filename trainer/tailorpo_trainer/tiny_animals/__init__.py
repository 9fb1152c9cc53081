"""`tiny-animals`: a text-to-image model small enough for a laptop's CPU, its scorer and its judge.

Only names and folders live here: importing this package loads neither torch nor Pillow. The README beside
this file is the model card; `python -m tools.tiny_animals.make`, in a checkout of the project, rebuilds every weight
from one font.
"""

from pathlib import Path

ROOT = Path(__file__).parent
PIPELINE = ROOT / "pipeline"
"""A stock `diffusers.StableDiffusionPipeline` folder, 64x64 pictures."""
SCORER = ROOT / "scorer"
"""A `transformers.CLIPModel` folder with image processor and tokenizer: how well a picture fits a caption."""
SCORING_DECODER = ROOT / "scoring-decoder"
"""A `diffusers.AutoencoderTiny` folder: decodes the pipeline's latents with a fraction of its decoder's work."""
JUDGE = ROOT / "judge"
"""A `transformers.ResNetForImageClassification` folder: names the animal. To evaluate, never a reward."""

SIZE = 64
"""Pixels a side of every picture."""

ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird",
    "cow", "lion", "tiger", "bear", "fox", "beetle", "butterfly", "fish",
    "whale", "mouse", "turtle", "frog", "chicken", "duck", "bee", "pig",
)  # fmt: skip
"""What the pipeline can draw: the most distinctive of the 45 animals that prompt sets of this field use."""

GROUNDS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
"""Colours of the background that a caption may name."""

__all__ = ["ANIMALS", "GROUNDS", "JUDGE", "PIPELINE", "ROOT", "SCORER", "SCORING_DECODER", "SIZE"]
