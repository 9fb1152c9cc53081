"""Noise is a function of its purpose alone."""

import torch

from tailorpo_trainer.diffusion.noise import Noise, Purpose

KEY = (3, Purpose.TRAINING, 5)


def test_a_sample_s_noise_does_not_depend_on_its_batch() -> None:
    whole = Noise(KEY, range(6), (4, 2, 2))
    parts = [whole.select(slice(0, 1)), whole.select(slice(1, 4)), Noise(KEY, [4, 5], (4, 2, 2))]
    assert torch.equal(whole.initial(), torch.cat([part.initial() for part in parts]))
    assert torch.equal(whole.step(2, 1), torch.cat([part.step(2, 1) for part in parts]))
    assert torch.equal(whole.choice(2, 9), torch.cat([part.choice(2, 9) for part in parts]))


def test_all_streams_differ() -> None:
    draws = [
        Noise((seed, purpose, iteration), [sample], (2,)).step(step, candidate)
        for seed in (0, 1)
        for purpose in Purpose
        for iteration in (0, 1)
        for sample in (0, 1)
        for step in (0, 1)
        for candidate in (0, 1)
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_it_is_standard_normal() -> None:
    values = Noise(KEY, range(64), (16, 8, 8)).step(0)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


def test_choices_are_uniform() -> None:
    counts = torch.bincount(Noise(KEY, range(4000), (1,)).choice(0, 4), minlength=4)
    assert counts.min() > 900
