"""The DDIM tables against the step function of diffusers, in float64."""

import pytest
import torch
from diffusers import DDIMScheduler

from tailorpo_trainer.diffusion.ddim import choose_steps, ddim
from tailorpo_trainer.errors import ConfigurationError

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler(**config: object) -> DDIMScheduler:
    made = DDIMScheduler(**(BETAS | {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False} | config))
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.final_alpha_cumprod = made.final_alpha_cumprod.double()
    return made


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [5, 20])
def test_mean_sigma_and_clean_agree_with_diffusers(
    eta: float, to_one: bool, spacing: str, prediction_type: str, steps: int
) -> None:
    theirs = scheduler(set_alpha_to_one=to_one, timestep_spacing=spacing, prediction_type=prediction_type)
    theirs.set_timesteps(steps)
    ours = ddim(theirs, steps, eta)
    generator = torch.Generator().manual_seed(0)
    x, prediction, noise = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for step, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(prediction, timestep, x, eta=eta, variance_noise=noise)
        next_x = ours.mean(step, x, prediction) + ours.noise_level(step, x) * noise
        torch.testing.assert_close(next_x, expected.prev_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.clean(step, x, prediction), expected.pred_original_sample, rtol=1e-9, atol=1e-9)


def test_a_step_for_each_row_is_the_same_as_row_by_row() -> None:
    sampler = ddim(scheduler(), 10, 1.0)
    x, prediction = torch.randn(2, 5, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([0, 3, 3, 9, 5])
    together = sampler.mean(steps, x, prediction)
    for row, step in enumerate(steps.tolist()):
        torch.testing.assert_close(together[row], sampler.mean(step, x[row], prediction[row]))


def test_a_last_step_without_noise_is_not_trained() -> None:
    assert ddim(scheduler(set_alpha_to_one=True), 20, 1.0).trainable == list(range(19))
    assert ddim(scheduler(set_alpha_to_one=False), 20, 1.0).trainable == list(range(20))


def test_the_model_s_clipping_is_switched_off() -> None:
    clipping = ddim(scheduler(clip_sample=True, thresholding=True), 5, 1.0)
    x = torch.full((1, 4, 2, 2), 30.0)
    assert float(clipping.clean(0, x, torch.zeros_like(x)).abs().max()) > 30


def test_more_steps_than_the_model_knows_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"spec.sampling.steps: 1001 .* at most 1000"):
        ddim(scheduler(), 1001, 1.0)


@pytest.mark.parametrize(("choose", "expected"), [("early", [0, 1, 2]), ("late", [7, 8, 9]), ("spread", [1, 5, 8])])
def test_chosen_steps(choose: str, expected: list[int]) -> None:
    assert choose_steps(ddim(scheduler(), 10, 1.0), 3, choose) == expected


def test_random_steps_train_every_step_equally_often() -> None:
    sampler, counts = ddim(scheduler(), 10, 1.0), torch.zeros(10)
    for k in range(1000):
        chosen = choose_steps(sampler, 3, "random", (k + 0.5) / 1000)
        assert len(chosen) == 3
        counts[chosen] += 1
    assert counts.min() >= 290
    assert counts.max() <= 310
