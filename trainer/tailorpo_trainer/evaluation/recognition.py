"""Whether pictures still show what was asked for, as the shipped model's independent judge sees them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tailorpo_trainer.tiny_animals import ANIMALS, JUDGE, SIZE


@dataclass(frozen=True)
class Recognition:
    """Of `images` pictures whose prompt names one animal that the judge knows, it named `right` right.

    left_out: pictures of other prompts.
    """

    right: int
    images: int
    left_out: int


def animal_in(prompt: str) -> str | None:
    """The one animal of the judge's that a prompt names, in the singular or plural; None if it names none or two."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    named = [animal for animal in ANIMALS if words & {animal, f"{animal}s", f"{animal}es"}]
    return named[0] if len(named) == 1 else None


class Judge:
    """Looks at pictures and counts those that show their prompt's animal; to evaluate, never a reward."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from transformers import ResNetForImageClassification

        self._model = ResNetForImageClassification.from_pretrained(JUDGE).eval().to(device)
        self._right = self._images = self._left_out = 0

    @torch.no_grad()
    def look(self, pictures: Tensor, prompts: Sequence[str]) -> None:
        """pictures [n, 3, H, W] in [0, 1], each with its prompt."""
        asked = [animal_in(prompt) for prompt in prompts]
        known = [row for row, animal in enumerate(asked) if animal is not None]
        self._left_out += len(asked) - len(known)
        if not known:
            return
        seen = pictures[known]
        if seen.shape[-2:] != (SIZE, SIZE):
            seen = F.interpolate(seen, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        named = self._model(seen * 2 - 1).logits.argmax(1).tolist()
        self._images += len(known)
        self._right += sum(ANIMALS[index] == asked[row] for index, row in zip(named, known, strict=True))

    def verdict(self) -> Recognition:
        """Of all pictures so far."""
        return Recognition(self._right, self._images, self._left_out)
