"""The contenders: one iteration of this package, and of `plain_loop` one by one and batched, with equal weights."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.plain_loop import plain_loop
from tailorpo_trainer import document, methods, models, rewards
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.training.updater import Updater

OURS, ONE_BY_ONE, BATCHED = "ours", "plain, one by one", "plain, batched"


def job(
    model: str,
    samples: int = 8,
    steps: int = 20,
    trained: int = 5,
    choose: str = "spread",
    scoring_decoder: str | None = None,
) -> TailorPOJob:
    """The document of the comparison: TailorPO as in `docs/methods.md`."""
    return document.parse(
        {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": "benchmark"},
            "spec": {
                "model": {"name": model} | ({"scoringDecoder": {"name": scoring_decoder}} if scoring_decoder else {}),
                "prompts": {"list": [f"a photo of a {animal}" for animal in ("cat", "dog", "lion", "bee")]},
                "rewards": [{"name": "colourfulness"}],
                "method": {"name": "tailorpo"},
                "sampling": {
                    "steps": steps,
                    "trainedSteps": {"count": trained, "choose": choose},
                    "guidanceScale": 5.0,
                },
                # Gradients are compared without clipping.
                "optimizer": {"learningRate": 1e-4, "maxGradNorm": 1e6},
                "training": {"iterations": 1, "promptsPerIteration": samples, "precision": "fp32"},
                "evaluation": {"everyIterations": 0},
            },
        }
    )


@dataclass
class Contender:
    """An implementation of an iteration: `run` returns the gradient of each adapter weight by name."""

    name: str
    denoisers: tuple[Any, ...]
    vae: Any
    run: Callable[[], dict[str, Tensor]]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    scoring_decoder: Any = None

    @property
    def denoiser_flops(self) -> int:
        return self.flops["forward"] + self.flops["backward"]


def contenders(work: TailorPOJob, seed: int = 0) -> list[Contender]:
    """Ours and the two plain ones, each with its own networks of the same weights, ready to run."""
    policy, reward = load(work, seed)
    return [_ours(work, policy, reward), *(_plain(work, policy, reward, at_once) for at_once in (1, 0))]


def ours(work: TailorPOJob, seed: int = 0) -> Contender:
    """The contender of this package alone."""
    return _ours(work, *load(work, seed))


def load(work: TailorPOJob, seed: int = 0) -> tuple[Policy, RewardSum]:
    """A policy whose adapter is not zero, and the reward."""
    run = work.spec
    device = torch.device("cpu")
    policy = models.load_policy(run, device)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # a new adapter equals the reference model, and half of its gradient is 0
        for weights in policy.parameters:
            weights.add_(0.02 * torch.randn(weights.shape, generator=generator))
    return policy, rewards.load(run.rewards, device)


def _inputs(work: TailorPOJob, policy: Policy) -> tuple[list[str], Tensor, Noise, list[int]]:
    run = work.spec
    listed, samples = run.prompts.list_, run.training.prompts_per_iteration
    assert listed is not None
    chosen = run.sampling.trained_steps
    assert chosen.count is not None
    assert chosen.choose is not None
    prompts = [listed[n % len(listed)] for n in range(samples)]
    noise = Noise((run.training.seed, Purpose.TRAINING, 0), range(samples), policy.latent_shape, policy.device)
    return (
        prompts,
        policy.embed(prompts),
        noise,
        choose_steps(policy.sampler, chosen.count, chosen.choose),
    )


def _ours(work: TailorPOJob, policy: Policy, reward: RewardSum) -> Contender:
    method = methods.build(work.spec.method)
    prompts, text, noise, trained = _inputs(work, policy)
    start = {name: weights.detach().clone() for name, weights in policy.adapter().items()}
    indices = torch.arange(len(prompts))

    def run() -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}

        def keep(*_: Any) -> None:
            gradients.update({n: w.grad.clone() for n, w in policy.adapter().items() if w.grad is not None})

        _reset(policy.adapter(), start)
        updater = Updater(policy, method, work.spec)
        updater.optimizer.register_step_pre_hook(keep)
        keep_graph = methods.can_keep_graph(work.spec.training, policy.batch_sizes, trained, len(noise.samples))
        scorer = Scorer(policy, reward, prompts)
        context = methods.RolloutContext(policy, text, indices, noise, scorer, trained, keep_graph=keep_graph)
        updater.iterate(method.rows(context, method.rollout(context)), text)
        return gradients

    return Contender(OURS, (policy.unet,), policy.vae, run, scoring_decoder=policy.scoring_decoder)


def _plain(work: TailorPOJob, policy: Policy, reward: RewardSum, at_once: int) -> Contender:
    """at_once: number of trajectories in one call; 0: all."""
    run = work.spec
    prompts, text, noise, trained = _inputs(work, policy)
    negative = policy.embed([run.sampling.negative_prompt])
    pipeline = models.load_pipeline(run.model)
    unet = type(pipeline.unet).from_config(pipeline.unet.config)
    unet.load_state_dict(pipeline.unet.state_dict())
    unet.requires_grad_(False).eval()
    pipeline.vae.requires_grad_(False).eval()
    models.attach_adapter(unet, run)
    adapter = {name: weights for name, weights in unet.named_parameters() if weights.requires_grad}
    start = {name: weights.detach().clone() for name, weights in policy.adapter().items()}
    sampling, settings = run.sampling, run.optimizer
    loop = plain_loop(
        pipeline,
        unet,
        guidance_scale=sampling.guidance_scale,
        steps=sampling.steps,
        eta=sampling.eta,
        beta=0.1,
    )
    assert run.method.beta == loop.beta

    def score(pictures: Tensor, of: Sequence[str]) -> Tensor:
        return reward(pictures, of).total

    def once() -> dict[str, Tensor]:
        _reset(adapter, start)
        optimizer = torch.optim.AdamW(adapter.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        loop.iteration(prompts, text, negative, noise, trained, score, at_once or len(prompts))
        gradients = {name: weights.grad.clone() for name, weights in adapter.items() if weights.grad is not None}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return gradients

    return Contender(ONE_BY_ONE if at_once else BATCHED, (unet, loop.reference), pipeline.vae, once)


def _reset(adapter: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weights in adapter.items():
            weights.copy_(start[name])


def count(contender: Contender) -> dict[str, Tensor]:
    """Run one iteration, and count its FLOPs and rows by their source; returns its gradients."""
    flops_of = {"forward": 0, "backward": 0, "decode": 0}
    rows = {"forward": 0, "forward with gradient": 0, "forward of the reference": 0, "decode": 0}
    decoders = {"decode": contender.vae}
    if contender.scoring_decoder is not None:
        decoders["scoring decode"] = contender.scoring_decoder
        flops_of["scoring decode"] = rows["scoring decode"] = 0

    def counted(kind: str, function: Callable[..., Any], reference: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = flops.get_total_flops()
            result = function(*args, **kwargs)
            flops_of[kind] += flops.get_total_flops() - before
            if kind in rows:
                rows[kind] += len(args[0])
            if kind == "forward":
                rows["forward with gradient"] += len(args[0]) * torch.is_grad_enabled()
                rows["forward of the reference"] += len(args[0]) * (reference or _adapter_off(contender))
            return result

        return call

    with ExitStack() as stack:
        flops = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(mock.patch.object(Tensor, "backward", counted("backward", Tensor.backward)))
        for kind, decoder in decoders.items():
            stack.enter_context(mock.patch.object(decoder, "decode", counted(kind, decoder.decode)))
        for number, denoiser in enumerate(contender.denoisers):
            forward = counted("forward", denoiser.forward, reference=number > 0)
            stack.enter_context(mock.patch.object(denoiser, "forward", forward))
        gradients = contender.run()
    contender.flops, contender.rows = flops_of, rows
    return gradients


def _adapter_off(contender: Contender) -> bool:
    """Whether the adapter of the denoiser is currently disabled."""
    layers = (module for module in contender.denoisers[0].modules() if isinstance(module, BaseTunerLayer))
    return bool(next(layers).disable_adapters)
