"""All randomness of a run, as functions of what it is for.

The noise of sample n at step i is a function of (seed, purpose, iteration, n, i) and of nothing else: not of the
batch size, the number of ranks, or where a run was interrupted. Each is an independent stream of numpy's
`SeedSequence` (O'Neill's seed_seq; spawn keys are made for this).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a stream is for, so that no two uses share numbers."""

    TRAINING = 0
    EVALUATION = 1
    SAMPLING = 2
    ADAPTER = 3
    PLUGINS = 4


def seed_globally(seed: int, purpose: Purpose, iteration: int, rank: int = 0) -> None:
    """Set the generators that code of others may use (a reward plug-in), as a function of the arguments.

    Called before each iteration and evaluation, so that what they draw does not depend on where a run was
    interrupted, and no generator's state needs to be kept.
    """
    words = np.random.SeedSequence(seed, spawn_key=(Purpose.PLUGINS, purpose, iteration, rank)).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:6])
    torch.manual_seed(int.from_bytes(words[6:].tobytes(), "little") >> 1)


INITIAL = 2**31
"""Stands where a step's index would: the noise that a trajectory starts from."""

CHOICE = 2**31 + 1
"""Stands where a step's index would: choices that are not Gaussian noise."""


@dataclass(frozen=True)
class Noise:
    """The noise of one iteration's samples.

    Attributes:
        key: seed, purpose and iteration.
        samples: global index of each row.
        shape: of one latent, [channels, height, width].
        device: where tensors are put; they are drawn on the CPU, the same on every machine.
    """

    key: tuple[int, int, int]
    samples: Sequence[int]
    shape: tuple[int, ...]
    device: Any = "cpu"

    def initial(self) -> Tensor:
        """x_T [n, *shape], standard normal."""
        return self._normal(INITIAL, 0)

    def step(self, index: int, candidate: int = 0) -> Tensor:
        """Noise of a denoising step for one candidate, [n, *shape], standard normal."""
        return self._normal(index, candidate)

    def choice(self, index: int, options: int) -> Tensor:
        """One of `options` for each row, uniform, int64 [n]."""
        drawn = [self._stream(sample, CHOICE, index).integers(options) for sample in self.samples]
        return torch.tensor(drawn, dtype=torch.int64, device=self.device)

    def uniform(self) -> float:
        """One number in [0, 1) for the whole iteration."""
        return float(self._stream(2**31, CHOICE, 2**31).random())

    @property
    def size(self) -> int:
        """Elements of one latent."""
        return math.prod(self.shape)

    def rows(self, part: slice) -> "Noise":
        """The noise of some of the samples: what they are given does not change."""
        return Noise(self.key, self.samples[part], self.shape, self.device)

    def _normal(self, index: int, candidate: int) -> Tensor:
        out = np.empty((len(self.samples), *self.shape), dtype=np.float32)
        for row, sample in enumerate(self.samples):
            self._stream(sample, index, candidate).standard_normal(out=out[row], dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def _stream(self, *where: int) -> np.random.Generator:
        seed, purpose, iteration = self.key
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, iteration, *where)))
        )
