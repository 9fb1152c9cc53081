"""The plain loop and this package compute equal gradients, also in float64, for every batch size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.training import contenders, pages, rollout_cost
from benchmarks.training.plain_loop import PlainLoop, plain_loop
from tailorpo_trainer import methods, models
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.rewards.weighted_sum import RewardSum, Term
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.training.updater import Updater

PROMPTS = ["a cat", "a dog", "a bee"]


class Brightness:
    """A reward whose ranks do not depend on rounding."""

    name, unit, differentiable = "brightness", "", True

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return images.mean((1, 2, 3))


class Exact(Policy):
    """The policy, in float64 throughout."""

    def _denoise(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = self.unet(x.double(), timesteps, encoder_hidden_states=text.double(), return_dict=False)[0]
        return output

    def decode(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1)


class ExactNoise(Noise):
    """The same noise, in float64."""

    def _normal(self, index: int, candidate: int) -> Tensor:
        return super()._normal(index, candidate).double()


@pytest.mark.parametrize("choose", ["spread", "early", "late"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_gradients_are_equal_in_float64(tiny_pipeline: Path, choose: str, at_once: int) -> None:
    job = contenders.job(str(tiny_pipeline), samples=len(PROMPTS), steps=6, trained=3)
    single = models.load_policy(job.spec, torch.device("cpu"))
    policy = Exact(**{name: value for name, value in vars(single).items() if name != "work"})
    policy.unet.double()
    policy.vae.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in policy.parameters:
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
    reward = RewardSum([Term("brightness", 1.0, Brightness())])
    text, negative = policy.embed(PROMPTS), policy.embed([""])
    noise = ExactNoise((0, Purpose.TRAINING, 0), range(len(PROMPTS)), policy.latent_shape)
    trained = choose_steps(policy.sampler, 3, choose)

    scene = methods.RolloutContext(
        policy, text.double(), torch.arange(len(PROMPTS)), noise, Scorer(policy, reward, PROMPTS), trained
    )
    method = methods.build(job.spec.method)
    rows = method.rows(scene, method.rollout(scene))
    assert rows.weight.all(), "no ties, or there is nothing to compare"
    ours = gradients_of_update(Updater(policy, method, job.spec), rows, scene.text)

    loop = loop_of(job, policy, tiny_pipeline)
    loop.iteration(
        PROMPTS, text.double(), negative.double(), noise, trained, lambda p, of: reward(p, of).total, at_once
    )
    plain = {name: weights.grad for name, weights in policy.adapter().items() if weights.grad is not None}
    assert rollout_cost.difference(ours, plain) < 1e-9
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 0


def gradients_of_update(updater: Updater, rows: Any, text: Tensor) -> dict[str, Tensor]:
    """The gradients of one optimiser step, which is undone."""
    adapter = updater.policy.adapter()
    start = {name: weights.detach().clone() for name, weights in adapter.items()}
    kept: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        kept.update({name: weights.grad.clone() for name, weights in adapter.items() if weights.grad is not None})

    updater.optimizer.register_step_pre_hook(keep)
    updater.iterate(rows, text)
    with torch.no_grad():
        for name, weights in adapter.items():
            weights.copy_(start[name])
    return kept


def loop_of(job: Any, policy: Policy, folder: Path) -> PlainLoop:
    """The plain loop on the same adapted denoiser, with its own reference."""
    pipeline = models.load_pipeline(job.spec.model)
    pipeline.unet.double()
    pipeline.vae = policy.vae
    sampling = job.spec.sampling
    return plain_loop(
        pipeline,
        policy.unet,
        guidance_scale=sampling.guidance_scale,
        steps=sampling.steps,
        eta=sampling.eta,
        beta=0.1,
    )


@pytest.fixture(scope="module")
def counted(tiny_pipeline: Path) -> dict[str, Any]:
    """The contenders after one counted iteration each, and the gradients of each."""
    field_of = contenders.contenders(contenders.job(str(tiny_pipeline), samples=2))
    return {contender.name: (contender, contenders.count(contender)) for contender in field_of}


def test_gradients_are_equal_as_the_benchmark_runs(counted: dict[str, Any]) -> None:
    _, ours = counted[contenders.OURS]
    for name in (contenders.ONE_BY_ONE, contenders.BATCHED):
        assert rollout_cost.difference(ours, counted[name][1]) < rollout_cost.EQUAL


def test_the_plain_loop_computes_what_it_says(counted: dict[str, Any]) -> None:
    """T + 2 T_ft predictions to sample and score, 4 T_ft to train, two rows each; the same batched or
    not."""
    per_sample = {
        "forward": 2 * (20 + 2 * 5 + 4 * 5),
        "forward with gradient": 2 * 2 * 5,
        "forward of the reference": 2 * 2 * 5,
        "decode": 2 * 5,
    }
    for name in (contenders.ONE_BY_ONE, contenders.BATCHED):
        assert counted[name][0].rows == {kind: 2 * rows for kind, rows in per_sample.items()}
    assert counted[contenders.ONE_BY_ONE][0].flops == counted[contenders.BATCHED][0].flops


def test_ours_computes_at_most_what_the_issue_allows(counted: dict[str, Any]) -> None:
    """70 plain forwards a trajectory for T = 20, T_ft = 5 and guidance, and the backward of 10 rows."""
    rows = counted[contenders.OURS][0].rows
    assert rows["forward"] <= 2 * 70
    assert rows["forward with gradient"] <= 2 * 10
    assert rows["decode"] <= 2 * 10


def test_unequal_gradients_are_noticed(counted: dict[str, Any]) -> None:
    _, ours = counted[contenders.OURS]
    spoiled = {name: gradient * (1 + 1e-3) for name, gradient in ours.items()}
    assert rollout_cost.difference(ours, spoiled) > rollout_cost.EQUAL


def test_figures_become_lines_and_tables(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_cost, "SD15", str(tiny_pipeline))  # its networks take seconds on the meta device
    said: list[str] = []
    report: Callable[[str], None] = said.append
    found = rollout_cost.measure(
        contenders.job(str(tiny_pipeline), samples=1, steps=4, trained=1), repeats=1, report=report
    )
    page = pages.markdown(found)
    assert sum("goal" in line for line in said) == 3
    assert page.count("| ours |") == 2
    assert "≤ 0.33" in page
