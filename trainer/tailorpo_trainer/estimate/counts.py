"""How much of everything a run computes: counted by running the real methods on a hollow policy.

The policy's networks are replaced by stubs of one number each, so the rollouts and losses of `methods/` run
as they are, in milliseconds, and their calls are counted. Nothing of an algorithm is written down a second
time, so the counts cannot fall behind the code. All counts are linear in the number of samples, so one
sample is run.
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
from tailorpo_trainer.rollout.scoring import Scorer, check_interval, rechecked
from tailorpo_trainer.spec.job import Spec

Key = tuple[str, str]
"""What is computed, and what for."""

Work = dict[Key, float]
"""Rows of each: a guided prediction of one latent counts two denoiser forwards. Whole numbers but for
means."""

EXACT_ITERATIONS = 100_000
"""With `choose: random` an iteration's work depends on its draw; after so many the mean of these stands for
the rest."""


@dataclass(frozen=True)
class Counts:
    """Work of an iteration (the mean, where iterations differ), of one evaluation, and of the run.

    Attributes:
        images: trajectories that an iteration draws. evaluations: how many there are. updates: optimiser steps.
        trained_rows: rows of denoising steps that one sample is trained on.
        largest: rows of the largest call of each kind for one sample.
    """

    iteration: Work
    evaluation: Work
    run: Work
    images: int
    evaluations: int
    updates: int
    trained_rows: int
    largest: Work


def count(run: Spec, sampler: DDIM, at_once: BatchSizes) -> Counts:
    """The counts of a document (method defaults resolved) whose model samples by these tables."""
    training = run.training
    samples = training.prompts_per_iteration * training.samples_per_prompt
    known: dict[tuple[int, ...], Work] = {}
    total, largest, trained_rows, images = Work(), Work(), 0, 0
    for trained, times in _trained(run, sampler).items():
        if trained not in known:
            known[trained], images = _iteration(run, sampler, trained, largest, at_once)
        total = add(total, scale(known[trained], times * samples))
        trained_rows = max(trained_rows, len(trained))
    checks = _checks(run, sampler, at_once)
    total = add(total, checks) if checks else total
    number = evaluations(run)
    evaluation = scale(_evaluation(run, sampler), run.evaluation.images) if number else Work()
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
    """How often is measured: before the first iteration, every so many, and at the end."""
    every, iterations = run.evaluation.every_iterations, run.training.iterations
    return 0 if every == 0 else 1 + iterations // every + (iterations % every > 0)


def add(left: Mapping[Key, float], right: Mapping[Key, float]) -> Work:
    return {key: left.get(key, 0) + right.get(key, 0) for key in [*left, *(key for key in right if key not in left)]}


def scale(work: Mapping[Key, float], factor: float) -> Work:
    return {key: value * factor for key, value in work.items()}


def _checks(run: Spec, sampler: DDIM, at_once: BatchSizes) -> Work:
    """What the checks of the scoring decoder add to a run: what an iteration with one has more than one without."""
    every = check_interval(run)
    samples = min(run.training.prompts_per_iteration * run.training.samples_per_prompt, at_once.sampling)
    total = Work()
    for trained, times in _trained(run, sampler, every).items() if every else ():
        without, checked = (_iteration(run, sampler, trained, {}, at_once, recheck=count)[0] for count in (0, 1))
        more = add(checked, scale(without, -1))
        rows = times * min(samples, rechecked(run, 0, trained))
        for (what, _), value in more.items():
            if value:
                total = add(total, {(what, "checking"): value * rows})
    return total


def _trained(run: Spec, sampler: DDIM, every: int = 1) -> dict[tuple[int, ...], float]:
    """Which steps are trained, and in how many iterations: in all, or in one of so many."""
    steps, training = run.sampling.trained_steps, run.training
    assert steps.count is not None
    assert steps.choose is not None
    if steps.choose != "random":
        return {tuple(choose_steps(sampler, steps.count, steps.choose)): len(range(0, training.iterations, every))}
    exact = min(training.iterations, EXACT_ITERATIONS)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for iteration in range(0, exact, every):
        draw = Noise((training.seed, Purpose.TRAINING, iteration), (), (1,)).uniform()
        found[tuple(choose_steps(sampler, steps.count, "random", draw))] += 1
    return {trained: times * training.iterations / exact for trained, times in found.items()}


def _iteration(
    run: Spec, sampler: DDIM, trained: Sequence[int], largest: Work, at_once: BatchSizes, recheck: int = 0
) -> tuple[Work, int]:
    """One iteration of one sample, and the trajectories it draws; `largest` takes in the rows of the largest calls.

    recheck: as `Scorer` has it.
    """
    hollow = Hollow(run, sampler)
    samples = run.training.prompts_per_iteration * run.training.samples_per_prompt
    scene = methods.RolloutContext(
        policy=hollow.policy,
        text=hollow.policy.embed(["a"]),
        prompts=torch.zeros(1, dtype=torch.int64),
        noise=Noise((0, Purpose.TRAINING, 0), range(1), hollow.policy.latent_shape),
        score=Scorer(hollow.policy, hollow.reward, ["a"], recheck=recheck),
        trained=trained,
        keep_graph=methods.can_keep_graph(run.training, at_once, trained, samples),
    )
    method = methods.build(run.method)
    drawn = method.roll_out(scene)
    hollow.phase = "training"
    rows = method.rows(scene, drawn)
    loss = method.loss(hollow.policy, rows, scene.text[rows.sample])
    loss.losses.sum().backward()
    hollow.work["reward", "training"] += hollow.reward.queries
    for key, value in hollow.largest.items():
        # An update takes rows in batches, also where the rollout has made some of them.
        of_update = key[0] == "forward" and key[1] in ("training", "reference")
        per_call = (hollow.rows if scene.keep_graph else value / len(rows)) if of_update else value
        largest[key] = max(largest.get(key, 0), per_call)
    return dict(hollow.work), hollow.policy.work.images


def _evaluation(run: Spec, sampler: DDIM) -> Work:
    hollow = Hollow(run, sampler, "evaluation")
    _, pictures = measurement.draw(hollow.policy, ["a"], 1, seed=0)
    hollow.work["reward", "evaluation"] += len(pictures)
    if run.evaluation.rewards:
        hollow.work["reward", "watching"] += len(pictures)
    return dict(hollow.work)


class Hollow(torch.nn.Module):
    """All networks of a policy in one: each returns at once what has the right shape, and counts.

    Attributes:
        phase: what the calls are for: `rollout`, `training` or `evaluation`.
        work: rows of each kind so far; a row with a gradient is a backward too.
    """

    def __init__(self, run: Spec, sampler: DDIM, phase: str = "rollout") -> None:
        super().__init__()
        self.phase, self.adapted = phase, True
        self.work: dict[Key, float] = defaultdict(float)
        self.largest: Work = {}
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows = 2 if run.sampling.guidance_scale != 1 else 1
        self.reward = RewardSum([Term("hollow", 1.0, _HollowReward())])
        self.policy = Policy(
            unet=self,
            vae=_HollowDecoder(self, "decode"),
            scoring_decoder=None if run.model.scoring_decoder is None else _HollowDecoder(self, "scoring decode"),
            text_encoder=lambda tokens: (torch.zeros(len(tokens), 1, 1),),
            tokenizer=_HollowTokenizer(),
            sampler=sampler,
            guidance_scale=run.sampling.guidance_scale,
            device=torch.device("cpu"),
            negative_prompt=run.sampling.negative_prompt,
            latent_shape=(1, 1, 1),
        )

    def forward(self, x: Tensor, timesteps: Tensor, **_: Any) -> tuple[Tensor]:
        self.note("forward", len(x), self._purpose(x))
        return (x * 0 + self.weight,)

    def disable_adapters(self) -> None:
        self.adapted = False

    def enable_adapters(self) -> None:
        self.adapted = True

    def note(self, what: str, rows: int, purpose: str) -> None:
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


class _HollowDecoder:
    """Instead of a VAE: any latent becomes one pixel. what: the kind of work it counts as."""

    dtype = torch.float32

    class config:  # noqa: N801 - as diffusers names it
        scaling_factor = 1.0

    def __init__(self, hollow: Hollow, what: str) -> None:
        self.hollow, self.what = hollow, what

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        hollow = self.hollow
        purpose = "evaluation" if hollow.phase == "evaluation" else "scoring"
        hollow.note(self.what, len(latents), "guidance" if torch.is_grad_enabled() else purpose)
        return (latents.expand(-1, 3, -1, -1),)


class _HollowTokenizer:
    model_max_length = 1

    def __call__(self, prompts: Sequence[str], **_: Any) -> Any:
        class Tokens:
            input_ids = torch.zeros(len(prompts), 1, dtype=torch.int64)

        return Tokens


class _HollowReward:
    name, unit, differentiable = "hollow", "", True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))
