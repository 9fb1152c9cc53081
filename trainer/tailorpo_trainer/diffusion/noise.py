"""All randomness of a run, as a function of its purpose.

The noise of sample n at step i is a function of (seed, purpose, iteration, n, i) and of nothing else: not of the
batch size, the number of ranks, or where a run was interrupted. Each tuple is the spawn key of an independent stream
of numpy's `SeedSequence`, which was designed for this use.
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
    """The purpose of a stream, so that no two uses share random numbers."""

    TRAINING = 0
    EVALUATION = 1
    SAMPLING = 2
    ADAPTER = 3
    PLUGINS = 4


def seed_globally(seed: int, purpose: Purpose, iteration: int, rank: int = 0) -> None:
    """Seed the global generators of Python, numpy and torch, which reward plug-ins may use.

    Called before each iteration and evaluation, so that their numbers do not depend on where a run was interrupted,
    and no generator's state has to be saved.
    """
    state = np.random.SeedSequence(seed, spawn_key=(Purpose.PLUGINS, purpose, iteration, rank)).generate_state(8)
    random.seed(state[:4].tobytes())
    np.random.seed(state[4:6])
    torch.manual_seed(int.from_bytes(state[6:].tobytes(), "little") >> 1)


INITIAL = 2**31
"""Takes the place of a step's index for the initial noise of a trajectory."""

CHOICE = 2**31 + 1
"""Takes the place of a step's index for random choices, which are not Gaussian noise."""


@dataclass(frozen=True)
class Noise:
    """The noise of one iteration's samples, float32.

    Attributes:
        key: seed, purpose and iteration.
        samples: global index of each row's sample, in all processes' samples.
        shape: of one latent, [channels, height, width].
        device: of the returned tensors; numbers are drawn on the CPU, so they are equal on every machine.
    """

    key: tuple[int, int, int]
    samples: Sequence[int]
    shape: tuple[int, ...]
    device: Any = "cpu"

    def initial(self) -> Tensor:
        """x_T [n, *shape], standard normal."""
        return self._normal(INITIAL, 0)

    def step(self, index: int, candidate: int = 0) -> Tensor:
        """Noise of one candidate at a denoising step, [n, *shape], standard normal."""
        return self._normal(index, candidate)

    def choice(self, index: int, options: int) -> Tensor:
        """A uniform choice from range(options) for each row, int64 [n]."""
        chosen = [self._stream(sample, CHOICE, index).integers(options) for sample in self.samples]
        return torch.tensor(chosen, dtype=torch.int64, device=self.device)

    def uniform(self) -> float:
        """A uniform number in [0, 1), one for the whole iteration."""
        return float(self._stream(2**31, CHOICE, 2**31).random())

    @property
    def size(self) -> int:
        """Elements of one latent."""
        return math.prod(self.shape)

    def select(self, rows: slice) -> "Noise":
        """The noise of some of the rows, the same numbers as they have here."""
        return Noise(self.key, self.samples[rows], self.shape, self.device)

    def _normal(self, index: int, candidate: int) -> Tensor:
        out = np.empty((len(self.samples), *self.shape), dtype=np.float32)
        for row, sample in enumerate(self.samples):
            self._stream(sample, index, candidate).standard_normal(out=out[row], dtype=np.float32)
        return torch.from_numpy(out).to(self.device)

    def _stream(self, *index: int) -> np.random.Generator:
        seed, purpose, iteration = self.key
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, iteration, *index)))
        )
