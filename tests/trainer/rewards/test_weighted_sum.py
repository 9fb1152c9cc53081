"""The weighted sum: linear, in the batch's order, and robust against every reward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorpo_trainer import rewards
from tailorpo_trainer.errors import ConfigurationError, NotFiniteError, ResourceError, RewardError, UnavailableError
from tailorpo_trainer.rewards.weighted_sum import RewardSum, Term

LOCAL = ("colourfulness", "jpeg-compressibility", "jpeg-incompressibility")
weight = st.floats(-100, 100)


class Fake:
    """A reward with a given behaviour."""

    name, unit = "fake", ""

    def __init__(self, answer, differentiable=False):
        self.answer, self.differentiable, self.sizes = answer, differentiable, []

    def __call__(self, images, prompts):
        self.sizes.append(len(images))
        return self.answer(images, prompts)


def one(answer, **given):
    return RewardSum([Term("fake", 1.0, Fake(answer, **given))])


def raising(error):
    def answer(images, prompts):
        raise error

    return answer


@given(first=weight, second=weight, factor=weight)
@settings(max_examples=25, deadline=None)
def test_is_linear_in_the_weights(first, second, factor, spec, pictures, prompts):
    def score(*weights):
        specs = [spec(name, weight) for name, weight in zip(LOCAL, weights, strict=False)]
        return rewards.load(specs, "cpu")(pictures(), prompts)

    scores = score(first, second)
    expected = first * scores.term_scores["colourfulness"] + second * scores.term_scores["jpeg-compressibility"]
    torch.testing.assert_close(scores.total, expected, rtol=1e-4, atol=1e-3)
    scaled = score(factor * first, factor * second)
    torch.testing.assert_close(scaled.total, factor * scores.total, rtol=1e-3, atol=1e-1)
    assert all(torch.equal(scaled.term_scores[name], part) for name, part in scores.term_scores.items())


@pytest.mark.parametrize("size", [None, 1, 2, 3, 4, 9])
def test_follows_the_batch_whatever_the_batch_size(size, spec, pictures, prompts, clip_folder):
    specs = [spec(name, batch_size=size) for name in LOCAL]
    total = rewards.load([*specs, spec("clip-score", model=str(clip_folder), batch_size=size)], "cpu")
    order = [3, 1, 0, 2]
    permuted = total(pictures()[order], [prompts[n] for n in order])
    whole = rewards.load([*map(spec, LOCAL), spec("clip-score", model=str(clip_folder))], "cpu")(pictures(), prompts)
    for name, part in permuted.term_scores.items():
        torch.testing.assert_close(part, whole.term_scores[name][order], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(permuted.total, whole.total[order], rtol=1e-4, atol=1e-3)


def test_batches_have_the_size_asked_for(pictures, prompts):
    fake = Fake(lambda images, prompts: images.mean((1, 2, 3)))
    RewardSum([Term("fake", 1.0, fake, batch_size=3)])(pictures(), prompts)
    assert fake.sizes == [3, 1]


def test_names_and_queries(spec, pictures, prompts):
    total = rewards.load([spec("colourfulness"), spec("jpeg-compressibility"), spec("colourfulness", -1.0)], "cpu")
    assert total.names == ("colourfulness", "jpeg-compressibility", "colourfulness-2")
    scores = total(pictures(), prompts)
    assert tuple(scores.term_scores) == total.names
    torch.testing.assert_close(scores.total, scores.term_scores["jpeg-compressibility"])
    total(pictures(2), prompts[:2])
    assert total.queries == 6
    assert total(pictures(1)[:0], []).total.shape == (0,)


def test_gradients_reach_the_pictures_through_the_sum(spec, pictures, prompts, clip_folder):
    total = rewards.load([spec("colourfulness", 0.5), spec("clip-score", 2.0, model=str(clip_folder))], "cpu")
    assert total.differentiable
    rewards.require_differentiable(total, "tailorpo-g")
    images = pictures().requires_grad_()
    scores = total(images, prompts)
    (whole,) = torch.autograd.grad(scores.total.sum(), images, retain_graph=True)
    parts = [torch.autograd.grad(part.sum(), images, retain_graph=True)[0] for part in scores.term_scores.values()]
    torch.testing.assert_close(whole, 0.5 * parts[0] + 2 * parts[1])
    assert all(part.norm() > 0 for part in parts)


def test_a_method_that_needs_gradients_says_which_reward_has_none(spec):
    total = rewards.load([spec("colourfulness"), spec("jpeg-compressibility")], "cpu")
    assert not total.differentiable
    with pytest.raises(ConfigurationError) as caught:
        rewards.require_differentiable(total, "tailorpo-g")
    assert str(caught.value) == (
        "spec.method.name: tailorpo-g needs a differentiable reward; jpeg-compressibility is not "
        "(differentiable: clip-score, colourfulness)"
    )


def test_autocast_does_not_coarsen_scores(spec, pictures, prompts, clip_folder):
    total = rewards.load([spec("clip-score", model=str(clip_folder))], "cpu")
    plain = total(pictures(), prompts).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(total(pictures(), prompts).total, plain)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named_with_its_prompt(value, pictures, prompts):
    answer = torch.tensor([1.0, 2.0, value, value])
    with pytest.raises(NotFiniteError) as caught:
        one(lambda images, prompts: answer)(pictures(), prompts)
    assert str(caught.value) == f"reward 'fake' returned {value} for prompt {prompts[2]!r}"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_picture_is_not_scored(value, pictures, prompts):
    images = pictures()
    images[1, 2, 3, 4] = value
    total = one(lambda images, prompts: torch.zeros(4))
    with pytest.raises(NotFiniteError, match=f"NaN or infinite pixels for prompt '{prompts[1]}'"):
        total(images, prompts)
    assert total.queries == 0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (torch.zeros(3), r"returned float32 \[3\] for 4 pictures"),
        (torch.zeros(4, 1), r"returned float32 \[4, 1\]"),
        (torch.zeros(()), r"returned float32 \[\]"),
        (torch.zeros(4, dtype=torch.complex64), r"returned complex64 \[4\]"),
        ([0.0] * 4, "returned list, not a tensor of 4"),
        (None, "returned NoneType"),
    ],
)
def test_an_answer_that_is_no_score_a_picture(answer, text, pictures, prompts):
    with pytest.raises(RewardError, match=f"^reward 'fake' {text}"):
        one(lambda images, prompts: answer)(pictures(), prompts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_scores_become_float32(dtype, pictures, prompts):
    scores = one(lambda images, prompts: torch.arange(4, dtype=dtype))(pictures(), prompts)
    assert scores.total.dtype == scores.term_scores["fake"].dtype == torch.float32
    assert scores.total.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (KeyError("mask"), RewardError, "^reward 'fake' raised KeyError: 'mask'$"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            ResourceError,
            "reward 'fake' ran out of memory on 4 pictures",
        ),
        (UnavailableError("gone"), UnavailableError, "^gone$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_reward_that_raises(error, expected, text, pictures, prompts):
    with pytest.raises(expected, match=text):
        one(raising(error))(pictures(), prompts)


def test_a_promised_gradient_that_is_missing(pictures, prompts):
    total = one(lambda images, prompts: images.detach().mean((1, 2, 3)), differentiable=True)
    total(pictures(), prompts)
    with torch.no_grad():
        total(pictures().requires_grad_(), prompts)
    with pytest.raises(RewardError, match="says it is differentiable, but"):
        total(pictures().requires_grad_(), prompts)
