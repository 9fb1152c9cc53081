"""Rewards whose behaviour a test changes while training runs: it writes a JSON file that they read at each call."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

POLL_SECONDS = 0.05


class Scripted:
    """The mean brightness, unless the file says otherwise: `lift` is added; `same`, `hang`, `nan` say what they do."""

    name = "scripted"
    unit = "share of white"
    differentiable = False
    sign = 1

    def __init__(self, parameters: Mapping[str, str], device: torch.device) -> None:
        del device
        self._file = Path(parameters["file"])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        while self._script().get("hang"):
            time.sleep(POLL_SECONDS)
        script = self._script()
        if script.get("nan"):
            return torch.full((len(images),), torch.nan)
        if script.get("same"):
            return torch.ones(len(images))
        scores: Tensor = images.mean(dim=(1, 2, 3)) + self.sign * script.get("lift", 0.0)
        return scores

    def _script(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found


class Opposed(Scripted):
    """Falls where the other rises."""

    name = "opposed"
    sign = -1
