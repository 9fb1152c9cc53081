"""Colourfulness: the paper's values, and useful gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorpo_trainer.rewards.colourfulness import SMOOTH, Colourfulness

score = Colourfulness()


def colours(*rgb):
    """A picture one pixel high, of these 8-bit colours."""
    return torch.tensor(rgb, dtype=torch.float64).T.reshape(1, 3, 1, -1) / 255


def by_numpy(image):
    """An independent implementation of Hasler and Suesstrunk 2003, for one picture [3, H, W] in [0, 1]."""
    r, g, b = 255 * image.numpy()
    rg, yb = r - g, 0.5 * (r + g) - b
    sigma = np.hypot(np.std(rg), np.std(yb))
    mu = np.hypot(np.mean(rg), np.mean(yb))
    return sigma + 0.3 * mu


@pytest.mark.parametrize("level", [0.0, 0.1, 1 / 3, 0.5, 1.0])
def test_grey_is_exactly_zero_with_a_finite_gradient(level):
    image = torch.full((1, 3, 4, 4), level, requires_grad=True)
    value = score(image, [""])
    value.sum().backward()
    assert value.item() == 0
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        # One colour: no spread. Red has rg 255, yb 127.5; blue has rg 0, yb -255.
        ([(255, 0, 0)], 0.3 * math.hypot(255, 127.5)),
        ([(0, 0, 255)], 0.3 * 255),
        # Half red, half green: rg is +-255 and yb 127.5 for both.
        ([(255, 0, 0), (0, 255, 0)], 255 + 0.3 * 127.5),
        # Half blue, half yellow: yb is -+255, the means are 0.
        ([(0, 0, 255), (255, 255, 0)], 255),
        # Red, green, blue: rg 255, -255, 0 and yb 127.5, 127.5, -255, means 0. (With |rg|, |yb|: 206.5.)
        ([(255, 0, 0), (0, 255, 0), (0, 0, 255)], 255 * math.sqrt(2 / 3 + 1 / 2)),
    ],
)
def test_values_computed_by_hand(picture, expected):
    assert score(colours(*picture), [""]).item() == pytest.approx(expected, abs=2 * SMOOTH)


@given(seed=st.integers(0, 2**31), n=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_agrees_with_numpy(seed, n, height, width):
    images = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
    expected = [by_numpy(image.double()) for image in images]
    np.testing.assert_allclose(score(images, [""] * n).numpy(), expected, rtol=1e-4, atol=2 * SMOOTH)


def test_gradient_is_right():
    images = torch.rand(2, 3, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: score(x, ["", ""]), images)


def test_ascent_makes_a_picture_more_colourful_to_the_end():
    image = 0.5 + 0.01 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    values = []
    for _ in range(40):
        image = image.detach().requires_grad_()
        value = score(image, [""])
        (gradient,) = torch.autograd.grad(value.sum(), image)
        image = (image + 0.05 * gradient / gradient.abs().max()).clamp(0, 1)
        values.append(value.item())
    assert values[0] < 10
    assert values[-1] > 150
    assert all(later > earlier for earlier, later in itertools.pairwise(values) if later < 150)
