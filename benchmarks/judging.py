"""The independent judge of benchmarks: whether a picture shows its prompt's animal."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import ResNetForImageClassification

from tailorpo_trainer.tiny_animals import ANIMALS, JUDGE
from tools.tiny_animals import judge


def share_right(pixels: NDArray[np.uint8], prompts: Sequence[str]) -> float:
    """Share of pictures, uint8 [n, 64, 64, 3], in which the shipped judge recognises the last word of the prompt."""
    wanted = [ANIMALS.index(prompt.split()[-1]) for prompt in prompts]
    return float((judge.name(_load(), pixels) == wanted).mean())


@cache
def _load() -> ResNetForImageClassification:
    return ResNetForImageClassification.from_pretrained(JUDGE).eval()
