"""Whether pictures still show what their prompts name, by the shipped model's independent judge."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tailorpo_trainer.tiny_animals import ANIMALS, JUDGE, SIZE


@dataclass(frozen=True)
class Recognition:
    """Of `images` pictures whose prompt names one animal of the judge's, it recognised that animal in `right`.

    left_out: number of pictures with other prompts.
    """

    right: int
    images: int
    left_out: int


def animal_in(prompt: str) -> str | None:
    """The animal of the judge's that a prompt names, in the singular or plural; None if it names none or several."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    named = [animal for animal in ANIMALS if words & {animal, f"{animal}s", f"{animal}es"}]
    return named[0] if len(named) == 1 else None


class Judge:
    """Counts the pictures that show their prompt's animal. A metric in the style of torchmetrics, never a reward."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from transformers import ResNetForImageClassification

        self._model = ResNetForImageClassification.from_pretrained(JUDGE).eval().to(device)
        self._right = self._images = self._left_out = 0

    @torch.no_grad()
    def update(self, pictures: Tensor, prompts: Sequence[str]) -> None:
        """Count pictures, float [n, 3, H, W] in [0, 1], each with its prompt."""
        expected = [animal_in(prompt) for prompt in prompts]
        known = [row for row, animal in enumerate(expected) if animal is not None]
        self._left_out += len(expected) - len(known)
        if not known:
            return
        inputs = pictures[known]
        if inputs.shape[-2:] != (SIZE, SIZE):
            inputs = F.interpolate(inputs, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        named = self._model(inputs * 2 - 1).logits.argmax(1).tolist()
        self._images += len(known)
        self._right += sum(ANIMALS[index] == expected[row] for index, row in zip(named, known, strict=True))

    def compute(self) -> Recognition:
        """The result over all pictures so far."""
        return Recognition(self._right, self._images, self._left_out)
