"""The independent judge of benchmarks: does a picture still show the animal that was asked for?"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import ResNetForImageClassification

from tailorpo_trainer.tiny_animals import ANIMALS, JUDGE
from tools.tiny_animals import judge


def share_right(pixels: NDArray[np.uint8], prompts: Sequence[str]) -> float:
    """Share of pictures [n, 64, 64, 3] that show the animal their prompt ends with, as the shipped judge sees it."""
    wanted = [ANIMALS.index(prompt.split()[-1]) for prompt in prompts]
    return float((judge.name(_load(), pixels) == wanted).mean())


@cache
def _load() -> ResNetForImageClassification:
    return ResNetForImageClassification.from_pretrained(JUDGE).eval()
