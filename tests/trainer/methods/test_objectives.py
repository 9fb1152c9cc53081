"""The losses against their definitions."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from tailorpo_trainer.methods import objectives


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_prob(y: Tensor, mean: Tensor, sigma: Tensor, how: str) -> Tensor:
    return objectives.reduce(Normal(mean, sigma.expand_as(mean)).log_prob(y), how)


@pytest.fixture
def gaussians() -> tuple[Tensor, Tensor, Tensor]:
    """Means of policy and reference, and sigma, for 6 rows."""
    mean = normal(6, 4, 3, 3)
    return (
        mean + 0.05 * normal(6, 4, 3, 3, seed=1),
        mean,
        torch.linspace(0.02, 0.7, 6, dtype=torch.float64).view(-1, 1, 1, 1),
    )


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_the_shared_logit_equals_four_log_probabilities(gaussians: tuple[Tensor, Tensor, Tensor], how: str) -> None:
    policy, reference, sigma = gaussians
    winner, loser = (policy + sigma * normal(6, 4, 3, 3, seed=seed) for seed in (2, 3))
    four = sum(
        sign * (log_prob(y, policy, sigma, how) - log_prob(y, reference, sigma, how))
        for sign, y in ((1, winner), (-1, loser))
    )
    ours = objectives.shared_logit(winner, loser, policy - reference, sigma, 0.7, how)
    torch.testing.assert_close(ours, 0.7 * four, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_the_log_ratio_equals_two_log_probabilities(gaussians: tuple[Tensor, Tensor, Tensor], how: str) -> None:
    policy, reference, sigma = gaussians
    y = policy + sigma * normal(6, 4, 3, 3, seed=2)
    expected = log_prob(y, policy, sigma, how) - log_prob(y, reference, sigma, how)
    ours = objectives.log_ratio(y, reference, policy - reference, sigma, how)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-9)


def test_in_float32_the_closed_form_is_exact_where_four_log_probabilities_cancel() -> None:
    mean, sigma = normal(1, 16, 8, 8), torch.tensor(0.0206, dtype=torch.float64).view(1, 1, 1, 1)
    shift = 1e-6 * normal(1, 16, 8, 8, seed=1)
    winner, loser = (mean + sigma * normal(1, 16, 8, 8, seed=seed) for seed in (2, 3))
    truth = objectives.shared_logit(winner, loser, shift, sigma, 1.0, "sum")
    ours = objectives.shared_logit(winner.float(), loser.float(), shift.float(), sigma.float(), 1.0, "sum")
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=0)
    four = sum(
        sign
        * (
            log_prob(y.float(), (mean + shift).float(), sigma.float(), "sum")
            - log_prob(y.float(), mean.float(), sigma.float(), "sum")
        )
        for sign, y in ((1, winner), (-1, loser))
    )
    assert abs(float(four) / float(truth) - 1) > 1e-3


def test_the_gradient_never_moves_the_mean_against_the_preferred_direction() -> None:
    """mu = J theta with one x for both sides: d mu . (y_w - y_l) >= 0 for every J, pair and sigma."""
    for seed in range(200):
        jacobian, start = normal(12, 5, seed=seed), normal(12, seed=seed + 1000)
        theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        winner, loser = (start + 0.3 * normal(12, seed=seed + other) for other in (2000, 3000))
        sigma = torch.tensor([[0.3]], dtype=torch.float64)
        logit = objectives.shared_logit(winner[None], loser[None], (jacobian @ theta)[None], sigma, 1.0, "sum")
        (gradient,) = torch.autograd.grad(objectives.preference_loss(logit).sum(), theta)
        moved = jacobian @ -gradient
        assert float(moved @ (winner - loser)) >= 0


def test_with_different_inputs_it_can() -> None:
    """In D3PO, winner and loser have different Jacobians, and the cross term is sometimes larger."""
    wrong = 0
    for seed in range(200):
        jacobians = [normal(12, 5, seed=seed), normal(12, 5, seed=seed + 500)]
        noises = [normal(12, seed=seed + other) for other in (2000, 3000)]
        theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        sigma = torch.tensor([[0.3]], dtype=torch.float64)
        delta = [
            objectives.log_ratio((0.3 * noise)[None], torch.zeros(1, 12), (jacobian @ theta)[None], sigma, "sum")
            for jacobian, noise in zip(jacobians, noises, strict=True)
        ]
        (gradient,) = torch.autograd.grad(objectives.preference_loss(delta[0] - delta[1]).sum(), theta)
        wrong += float((jacobians[0] @ -gradient) @ noises[0]) < 0
    assert wrong > 0


def test_the_loss_begins_at_log_2() -> None:
    assert float(objectives.preference_loss(torch.zeros(1))) == pytest.approx(math.log(2))


def test_the_ratio_is_clamped_as_in_d3po() -> None:
    delta = torch.tensor([-1.0, -0.05, 0.0, 0.05, 1.0])
    expected = delta.exp().clamp(0.9, 1.1).log()
    torch.testing.assert_close(objectives.clamp_log_ratio(delta, 0.1), expected)


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"), [(1.0, 1.2, False), (1.0, 0.8, True), (-1.0, 1.2, True), (-1.0, 0.8, False)]
)
def test_the_surrogate_stops_where_ppo_stops(advantage: float, ratio: float, gradient: bool) -> None:
    delta = torch.tensor([math.log(ratio)], requires_grad=True)
    objectives.clipped_surrogate(delta, torch.tensor([advantage]), 0.1).sum().backward()
    assert delta.grad is not None
    assert (float(delta.grad) != 0) is gradient
