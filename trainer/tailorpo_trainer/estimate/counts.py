"""How many rows of each kind a run computes, counted by running the real methods on networks that only count.

The policy's networks are replaced by stubs with one parameter, so that the rollouts and losses of `methods/` run
unchanged in milliseconds, and their calls are counted. No algorithm is described a second time, so the counts always
agree with the code. All counts are linear in the number of samples, so one sample is run.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer import methods
from tailorpo_trainer.diffusion.batch_sizes import BatchSizes
from tailorpo_trainer.diffusion.ddim import DDIM, choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.evaluation import measurement
from tailorpo_trainer.rewards.weighted_sum import RewardSum, Term
from tailorpo_trainer.rollout.scoring import Scorer, check_interval, samples_to_check
from tailorpo_trainer.spec.job import Spec

Key = tuple[str, str]
"""The kind of computation, and its purpose; see `printing.TITLES` for the kinds."""

RowCounts = dict[Key, float]
"""Rows of each kind and purpose; means may be fractions. With classifier-free guidance, the prediction of one latent
counts two forwards."""

EXACT_ITERATIONS = 100_000
"""With `choose: random` the work of an iteration is random. This many are counted; their mean is used for the rest."""


@dataclass(frozen=True)
class Counts:
    """Rows of an iteration (the mean, if iterations differ), of one evaluation, and of the run.

    Attributes:
        images: trajectories of one iteration. evaluations: their number. updates: optimiser steps.
        trained_rows: rows that one sample is trained on, at most.
        largest: rows of the largest call of each kind for one sample.
    """

    iteration: RowCounts
    evaluation: RowCounts
    run: RowCounts
    images: int
    evaluations: int
    updates: int
    trained_rows: int
    largest: RowCounts


def count(run: Spec, sampler: DDIM, sizes: BatchSizes) -> Counts:
    """The counts of a resolved document. sampler: its model's DDIM tables; sizes: rows in memory at once."""
    training = run.training
    samples = training.prompts_per_iteration * training.samples_per_prompt
    known: dict[tuple[int, ...], RowCounts] = {}
    total, largest, trained_rows, images = RowCounts(), RowCounts(), 0, 0
    for trained, times in _trained(run, sampler).items():
        if trained not in known:
            known[trained], images = _iteration(run, sampler, trained, largest, sizes)
        total = add(total, scale(known[trained], times * samples))
        trained_rows = max(trained_rows, len(trained))
    checks = _checks(run, sampler, sizes)
    total = add(total, checks) if checks else total
    number = evaluations(run)
    evaluation = scale(_evaluation(run, sampler), run.evaluation.images) if number else RowCounts()
    return Counts(
        iteration=scale(total, 1 / training.iterations),
        evaluation=evaluation,
        run=add(total, scale(evaluation, number)),
        images=images * samples,
        evaluations=number,
        updates=training.iterations * training.updates_per_iteration,
        trained_rows=trained_rows,
        largest=largest,
    )


def evaluations(run: Spec) -> int:
    """The number of evaluations: before the first iteration, after every interval, and at the end."""
    every, iterations = run.evaluation.every_iterations, run.training.iterations
    return 0 if every == 0 else 1 + iterations // every + (iterations % every > 0)


def add(left: Mapping[Key, float], right: Mapping[Key, float]) -> RowCounts:
    """The sum of two counts."""
    return {key: left.get(key, 0) + right.get(key, 0) for key in [*left, *(key for key in right if key not in left)]}


def scale(work: Mapping[Key, float], factor: float) -> RowCounts:
    """The counts times a factor."""
    return {key: value * factor for key, value in work.items()}


def _checks(run: Spec, sampler: DDIM, sizes: BatchSizes) -> RowCounts:
    """Rows that the checks of the scoring decoder add to a run: the difference of iterations with and without one."""
    every = check_interval(run)
    samples = min(run.training.prompts_per_iteration * run.training.samples_per_prompt, sizes.sampling)
    total = RowCounts()
    for trained, times in _trained(run, sampler, every).items() if every else ():
        without, checked = (_iteration(run, sampler, trained, {}, sizes, recheck=count)[0] for count in (0, 1))
        more = add(checked, scale(without, -1))
        rows = times * min(samples, samples_to_check(run, 0, trained))
        for (what, _), value in more.items():
            if value:
                total = add(total, {(what, "checking"): value * rows})
    return total


def _trained(run: Spec, sampler: DDIM, every: int = 1) -> dict[tuple[int, ...], float]:
    """The sets of trained steps, and in how many of the iterations 0, every, 2 every, ... each is used."""
    steps, training = run.sampling.trained_steps, run.training
    assert steps.count is not None
    assert steps.choose is not None
    if steps.choose != "random":
        return {tuple(choose_steps(sampler, steps.count, steps.choose)): len(range(0, training.iterations, every))}
    exact = min(training.iterations, EXACT_ITERATIONS)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for iteration in range(0, exact, every):
        fraction = Noise((training.seed, Purpose.TRAINING, iteration), (), (1,)).uniform()
        found[tuple(choose_steps(sampler, steps.count, "random", fraction))] += 1
    return {trained: times * training.iterations / exact for trained, times in found.items()}


def _iteration(
    run: Spec, sampler: DDIM, trained: Sequence[int], largest: RowCounts, sizes: BatchSizes, recheck: int = 0
) -> tuple[RowCounts, int]:
    """Rows of one iteration with one sample, and the number of its trajectories. Updates `largest` in place.

    recheck: see `Scorer`.
    """
    networks = CountingNetworks(run, sampler)
    samples = run.training.prompts_per_iteration * run.training.samples_per_prompt
    context = methods.RolloutContext(
        policy=networks.policy,
        text=networks.policy.embed(["a"]),
        prompts=torch.zeros(1, dtype=torch.int64),
        noise=Noise((0, Purpose.TRAINING, 0), range(1), networks.policy.latent_shape),
        score=Scorer(networks.policy, networks.reward, ["a"], recheck=recheck),
        trained=trained,
        keep_graph=methods.can_keep_graph(run.training, sizes, trained, samples),
    )
    method = methods.build(run.method)
    rollout = method.rollout(context)
    networks.phase = "training"
    rows = method.rows(context, rollout)
    loss = method.loss(networks.policy, rows, context.text[rows.sample])
    loss.losses.sum().backward()
    networks.work["reward", "training"] += networks.reward.queries
    for key, value in networks.largest.items():
        # An update takes rows in micro-batches, also if the rollout has computed some of their predictions.
        of_update = key[0] == "forward" and key[1] in ("training", "reference")
        per_call = (networks.rows if context.keep_graph else value / len(rows)) if of_update else value
        largest[key] = max(largest.get(key, 0), per_call)
    return dict(networks.work), networks.policy.counters.images


def _evaluation(run: Spec, sampler: DDIM) -> RowCounts:
    networks = CountingNetworks(run, sampler, "evaluation")
    _, pictures = measurement.sample_pictures(networks.policy, ["a"], 1, seed=0)
    networks.work["reward", "evaluation"] += len(pictures)
    if run.evaluation.rewards:
        networks.work["reward", "watching"] += len(pictures)
    return dict(networks.work)


class CountingNetworks(torch.nn.Module):
    """Stands for all networks of a policy: returns tensors of the right shape, and counts rows.

    Attributes:
        phase: the purpose of the calls: `rollout`, `training` or `evaluation`.
        work: rows of each kind so far; a row with a gradient is also counted as a backward.
        largest: rows of the largest call of each kind. rows: denoiser rows of the prediction of one latent.
        policy, reward: a policy of these networks, and a reward for its pictures.
    """

    def __init__(self, run: Spec, sampler: DDIM, phase: str = "rollout") -> None:
        super().__init__()
        self.phase, self.adapted = phase, True
        self.work: dict[Key, float] = defaultdict(float)
        self.largest: RowCounts = {}
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows = 2 if run.sampling.guidance_scale != 1 else 1
        self.reward = RewardSum([Term("stub", 1.0, _StubReward())])
        self.policy = Policy(
            unet=self,
            vae=_CountingDecoder(self, "decode"),
            scoring_decoder=None if run.model.scoring_decoder is None else _CountingDecoder(self, "scoring decode"),
            text_encoder=lambda tokens: (torch.zeros(len(tokens), 1, 1),),
            tokenizer=_StubTokenizer(),
            sampler=sampler,
            guidance_scale=run.sampling.guidance_scale,
            device=torch.device("cpu"),
            negative_prompt=run.sampling.negative_prompt,
            latent_shape=(1, 1, 1),
        )

    def forward(self, x: Tensor, timesteps: Tensor, **_: Any) -> tuple[Tensor]:
        """In place of the denoiser: zeros [n, 1, 1, 1] that depend on x and on `weight`."""
        self.record("forward", len(x), self._purpose(x))
        return (x * 0 + self.weight,)

    def disable_adapters(self) -> None:
        """As in diffusers: until `enable_adapters`, forwards are those of the reference model."""
        self.adapted = False

    def enable_adapters(self) -> None:
        """As in diffusers."""
        self.adapted = True

    def record(self, what: str, rows: int, purpose: str) -> None:
        """Count a call with so many rows."""
        self.work[what, purpose] += rows
        self.largest[what, purpose] = max(self.largest.get((what, purpose), 0), rows)
        if torch.is_grad_enabled():
            self.work[f"{what} backward", purpose] += rows

    def _purpose(self, x: Tensor) -> str:
        if not self.adapted:
            return "reference"
        if self.phase != "rollout":
            return self.phase
        if torch.is_grad_enabled():
            return "guidance" if x.requires_grad else "training"
        return "scoring" if len(x) > self.rows else "rollout"


class _CountingDecoder:
    """In place of a decoder: every latent becomes one pixel. what: the kind under which rows are counted."""

    dtype = torch.float32

    class config:  # noqa: N801 - as diffusers names it
        scaling_factor = 1.0

    def __init__(self, networks: CountingNetworks, what: str) -> None:
        self.networks, self.what = networks, what

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        networks = self.networks
        purpose = "evaluation" if networks.phase == "evaluation" else "scoring"
        networks.record(self.what, len(latents), "guidance" if torch.is_grad_enabled() else purpose)
        return (latents.expand(-1, 3, -1, -1),)


class _StubTokenizer:
    model_max_length = 1

    def __call__(self, prompts: Sequence[str], **_: Any) -> Any:
        class Tokens:
            input_ids = torch.zeros(len(prompts), 1, dtype=torch.int64)

        return Tokens


class _StubReward:
    name, unit, differentiable = "stub", "", True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))
