"""Diversity, and that measurements do not depend on batch sizes or on the number of processes."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tailorpo_trainer import models, rewards
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.document import parse
from tailorpo_trainer.evaluation import measurement
from tailorpo_trainer.evaluation.measurement import diversity
from tailorpo_trainer.spec.job import Reward, Spec

PROMPTS = ["a cat", "a dog", "a bee"]


def pictures(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_diversity_of_equal_pictures_is_zero_exactly() -> None:
    assert diversity(pictures(1).repeat(6, 1, 1, 1), ["a"] * 6) == 0


def test_diversity_is_the_mean_over_pairs_and_then_over_prompts() -> None:
    drawn, texts = pictures(9), ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    groups = {"a": range(4), "b": range(4, 7), "c": range(7, 9)}
    means = []
    for rows in groups.values():
        apart = [float((drawn[i] - drawn[j]).double().square().mean().sqrt()) for i, j in combinations(rows, 2)]
        means.append(sum(apart) / len(apart))
    assert diversity(drawn, texts) == pytest.approx(sum(means) / 3, rel=1e-6)


def test_diversity_does_not_depend_on_the_order_or_on_lone_prompts() -> None:
    drawn, texts = pictures(8), ["a", "b"] * 4
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    expected = diversity(drawn, texts)
    assert diversity(drawn[order], [texts[n] for n in order]) == pytest.approx(expected, rel=1e-6)
    assert diversity(torch.cat([drawn, pictures(1, seed=9)]), [*texts, "lone"]) == pytest.approx(expected, rel=1e-6)


def test_diversity_grows_with_the_differences() -> None:
    middle, away = pictures(1), pictures(6, seed=1) - 0.5
    spreads = [diversity((middle + size * away).clamp(0, 1), ["a"] * 6) or 0.0 for size in (0.0, 0.1, 0.3, 1.0)]
    assert spreads == sorted(spreads)
    assert spreads[0] == 0
    assert spreads[1] < 0.5 * spreads[-1]


def test_diversity_sees_shapes_and_not_the_noise_of_large_pictures() -> None:
    shape = torch.zeros(2, 3, 64, 64)
    shape[1, :, :32] = 1
    assert diversity(shape, ["a", "a"]) == pytest.approx(0.5**0.5)
    checks = torch.zeros(2, 3, 64, 64)
    checks[0, :, ::2, ::2], checks[1, :, 1::2, 1::2] = 1, 1
    assert diversity(checks, ["a", "a"]) == pytest.approx(0)
    assert diversity(torch.rand(3, 3, 96, 24), ["a"] * 3) is not None


def test_no_prompt_with_two_pictures_has_no_diversity() -> None:
    assert diversity(pictures(3), ["a", "b", "c"]) is None


def test_the_error_of_diversity_is_that_of_the_spread_between_runs() -> None:
    """One prompt: the jackknife error against the standard deviation over many sets of pictures."""

    def draw(seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        level = torch.rand(12, 1, 1, 1, generator=generator)
        found = measurement._diversity(level.expand(12, 3, 4, 4), ["a"] * 12)
        assert found[0] is not None
        assert found[1] is not None
        return found[0], found[1]

    values, errors = zip(*(draw(seed) for seed in range(200)), strict=True)
    assert sum(errors) / 200 == pytest.approx(float(torch.tensor(values).std()), rel=0.2)
    assert measurement._diversity(pictures(2), ["a", "a"])[1] is None


def test_feature_diversity_is_the_mean_cosine_distance_of_pairs() -> None:
    features = torch.nn.functional.normalize(pictures(7).flatten(1) - 0.5, dim=1)
    apart = [1 - float(features[i].double() @ features[j].double()) for i, j in combinations(range(4), 2)]
    more = [1 - float(features[i].double() @ features[j].double()) for i, j in combinations(range(4, 7), 2)]
    found, error = measurement._diversity(features, ["a"] * 4 + ["b"] * 3, measurement._cosine_distances)
    assert found == pytest.approx((sum(apart) / 6 + sum(more) / 3) / 2, rel=1e-6)
    assert error is not None
    same, _ = measurement._diversity(features[:1].expand(5, -1), ["a"] * 5, measurement._cosine_distances)
    assert same == pytest.approx(0, abs=1e-6)


def test_feature_diversity_needs_a_clip_model_among_the_rewards(run: Spec, policy: Policy) -> None:
    watched = rewards.load([Reward(name="clip-score", batch_size=2)], "cpu")
    reward = rewards.load(run.rewards, "cpu")
    seen = measurement.measure(policy, reward, watched, PROMPTS[:1], 5, 0)
    assert seen.feature_diversity is not None
    assert 0 < seen.feature_diversity < 2
    assert seen.feature_diversity_error is not None
    assert measurement.measure(policy, reward, None, PROMPTS[:1], 5, 0).feature_diversity is None
    assert measurement.measure(policy, watched, None, PROMPTS[:1], 5, 0).feature_diversity == pytest.approx(
        seen.feature_diversity
    )


@pytest.fixture(scope="module")
def run(tiny_pipeline: Path) -> Spec:
    values = {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "test"},
        "spec": {
            "model": {"name": str(tiny_pipeline)},
            "prompts": {"list": PROMPTS},
            "rewards": [{"name": "colourfulness"}, {"name": "jpeg-compressibility", "weight": 0.5}],
            "method": {"name": "tailorpo"},
            "sampling": {"steps": 3, "guidanceScale": 3.0},
        },
    }
    return parse(values).spec


@pytest.fixture(scope="module")
def policy(run: Spec) -> Policy:
    return models.load_policy(run)


@pytest.fixture
def measure(run: Spec, policy: Policy) -> Callable[..., measurement.Measurement]:
    reward = rewards.load(run.rewards, "cpu")
    return lambda count, **options: measurement.measure(policy, reward, None, PROMPTS, count, 0, **options)


def test_a_measurement_does_not_depend_on_its_batches(measure: Callable[..., measurement.Measurement]) -> None:
    whole = measure(7)
    for size in (1, 3, 7):
        parts = measure(7, batch=size)
        assert parts.prompts == whole.prompts == [*PROMPTS, *PROMPTS, PROMPTS[0]]
        torch.testing.assert_close(parts.pictures, whole.pictures, rtol=0, atol=1e-5)
        # The size of a JPEG is a whole number of bytes, which the rounding of one pixel may change.
        torch.testing.assert_close(
            parts.term_scores["colourfulness"], whole.term_scores["colourfulness"], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(parts.reward, whole.reward, rtol=0, atol=0.05)
        assert parts.diversity == pytest.approx(whole.diversity, rel=1e-4)


def test_a_longer_measurement_begins_as_a_shorter_one(measure: Callable[..., measurement.Measurement]) -> None:
    short, long = measure(2, batch=2), measure(4, batch=2, keep=3)
    assert torch.equal(long.reward[:2], short.reward)
    assert len(long.pictures) == 3
    assert torch.equal(long.pictures[:2], short.pictures)


def test_two_pictures_are_enough(measure: Callable[..., measurement.Measurement]) -> None:
    found = measure(2)
    assert found.reward.isfinite().all()
    assert (found.diversity, found.diversity_error) == (None, None)


def test_the_weighted_sum_is_that_of_the_parts(measure: Callable[..., measurement.Measurement]) -> None:
    found = measure(3, keep=0)
    torch.testing.assert_close(
        found.reward, found.term_scores["colourfulness"] + 0.5 * found.term_scores["jpeg-compressibility"]
    )
    assert found.pictures.shape == (0, 3, 16, 16)


def test_before_and_after_are_drawn_on_the_same_noise(policy: Policy) -> None:
    """A new adapter equals the base model, so any difference would be the noise."""
    texts, after = measurement.sample_pictures(policy, PROMPTS, 4, seed=3)
    with policy.reference():
        before = measurement.sample_pictures(policy, PROMPTS, 4, seed=3)
    assert before[0] == texts
    assert torch.equal(before[1], after)
    assert not torch.equal(measurement.sample_pictures(policy, PROMPTS, 4, seed=4)[1], after)


def test_nothing_is_recorded_for_a_backward_pass(policy: Policy) -> None:
    before: Any = policy.counters.forwards_with_gradient
    for _, drawn in measurement.picture_batches(policy, PROMPTS, 3, 0, batch=2):
        assert not drawn.requires_grad
        assert torch.is_grad_enabled()  # also between two batches
    assert policy.counters.forwards_with_gradient == before
