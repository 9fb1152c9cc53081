"""The DDIM tables against the step function of diffusers, in float64."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.schedulers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

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
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # where its steps end where the next ones begin
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


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [3, 7, 10, 30, 50, 999])
def test_a_step_ends_where_the_next_begins(spacing: str, steps: int) -> None:
    """Without added noise, a perfect prediction stays on the noised latents of its own clean latent."""
    theirs = scheduler(timestep_spacing=spacing)
    ours = ddim(theirs, steps, 0.0)
    clean, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noised = [abar.sqrt() * clean + (1 - abar).sqrt() * noise for abar in theirs.alphas_cumprod[ours.timesteps]]
    final = theirs.final_alpha_cumprod
    ends = [*noised[1:], final.sqrt() * clean + (1 - final).sqrt() * noise]
    for step, (begin, end) in enumerate(zip(noised, ends, strict=True)):
        torch.testing.assert_close(ours.mean(step, begin, noise), end, rtol=1e-5, atol=1e-5)


def test_the_document_s_spacing_holds_where_the_config_has_no_such_key(tmp_path: Path) -> None:
    """Folders that an old diffusers saved lack the key, and their configs remember that it is a default."""
    theirs = scheduler()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["timestep_spacing"], config["prediction_type"]
    file.write_text(json.dumps(config))
    loaded = DDIMScheduler.from_pretrained(tmp_path)
    assert [int(ddim(loaded, 6, 1.0, spacing).timesteps[0]) for spacing in ("leading", "trailing")] == [831, 999]


TRAINED = {
    *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
}
REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 1},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": None,  # takes networks
}
"""What some schedulers of diffusers cannot be made without."""


def all_schedulers() -> Iterator[type[Any]]:
    """Every scheduler of the installed diffusers that can be imported."""
    for module in pkgutil.iter_modules(diffusers.schedulers.__path__):
        try:
            found = vars(importlib.import_module(f"diffusers.schedulers.{module.name}"))
        except ImportError:  # needs a package that is not installed
            continue
        for name, kind in found.items():
            own = isinstance(kind, type) and issubclass(kind, SchedulerMixin) and kind.__module__.endswith(module.name)
            if own and kind is not SchedulerMixin and REQUIRED.get(name, {}) is not None:
                yield kind


@pytest.mark.parametrize("kind", all_schedulers(), ids=lambda kind: kind.__name__)
def test_each_scheduler_of_diffusers_is_known_or_refused(kind: type[Any]) -> None:
    own = REQUIRED.get(kind.__name__) or {}
    betas = BETAS if {*BETAS} <= {*inspect.signature(kind).parameters} else {}
    made = kind(**own, **betas)
    if kind.__name__ in TRAINED:
        assert ddim(made, 10, 1.0).timesteps.tolist()[0] in (900, 901)
        torch.testing.assert_close(ddim(made, 10, 1.0).clean_m, ddim(scheduler(steps_offset=0), 10, 1.0).clean_m)
    else:
        with pytest.raises(ConfigurationError, match=rf"spec.model.name: its scheduler is a {kind.__name__}"):
            ddim(made, 10, 1.0)


def test_all_that_are_known_are_there() -> None:
    assert {kind.__name__ for kind in all_schedulers()} >= TRAINED


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (EulerDiscreteScheduler, {"timestep_type": "continuous"}, "timestep_type: 'continuous'"),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "use_flow_sigmas: True"),
        (DPMSolverMultistepScheduler, {"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'"),
    ],
)
def test_a_relative_of_another_process(kind: type[Any], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ddim(kind(**BETAS, **config), 10, 1.0)


def test_betas_that_the_config_does_not_say_are_the_scheduler_s_own() -> None:
    """HeunDiscreteScheduler and DDIMScheduler have different defaults."""
    theirs = HeunDiscreteScheduler()
    table = theirs.alphas_cumprod.double()
    assert torch.allclose(ddim(theirs, 10, 1.0).clean_x, table[ddim(theirs, 10, 1.0).timesteps].rsqrt())


def test_no_signal_at_the_first_step() -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ConfigurationError, match=r"timestep 999 .* no signal .*timestepSpacing to leading"):
        ddim(scheduler(**zero), 6, 1.0)
    assert torch.isfinite(ddim(scheduler(**zero, prediction_type="v_prediction"), 6, 1.0).mean_m).all()
    assert int(ddim(scheduler(**zero), 6, 1.0, "leading").timesteps[0]) == 831


@pytest.mark.parametrize("steps", [1000, 999])
def test_as_many_steps_as_the_model_knows(steps: int) -> None:
    if steps == 1000:  # steps_offset 1 makes them begin at timestep 1000
        with pytest.raises(ConfigurationError, match=r"spec.sampling.steps: 1000 .* from timestep 1000 to 1, .* fewer"):
            ddim(scheduler(), steps, 1.0)
        assert ddim(scheduler(steps_offset=0), steps, 1.0).steps == 1000
    else:
        assert ddim(scheduler(), steps, 1.0).steps == 999


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
