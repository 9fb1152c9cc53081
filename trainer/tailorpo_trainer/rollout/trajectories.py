"""Draw trajectories, and compute each thing once.

Two shapes serve all methods: `branch` draws several next latents from one latent at the trained steps, scores them
there and goes on from one of them; `follow` draws whole trajectories and leaves the scoring to the end.

In `branch` the candidates share one mean, the prediction made at the chosen candidate in order to score it *is* the
next step's prediction, so that only the others cost a call; after the last trained step nothing is drawn at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.noise import Noise
from tailorpo_trainer.diffusion.policy import Policy

Score = Callable[[Tensor, int], Tensor]
"""(clean latents [n k, c, h, w], each sample's k in a row; denoising step) -> rewards [n k]."""


@dataclass(frozen=True)
class Branch:
    """What one trained step drew from each sample's latent.

    Attributes:
        step: its index.
        x: the latent it started from [n, c, h, w].
        candidates: next latents [n, k, c, h, w]. rewards: of the picture each leads to [n, k].
        winner, loser: candidate of the highest and lowest reward, int64 [n].
        target: the winner's latent, pushed or not [n, c, h, w].
        prediction: the policy's at x with its graph, if that was kept [n, c, h, w].
    """

    step: int
    x: Tensor
    candidates: Tensor
    rewards: Tensor
    winner: Tensor
    loser: Tensor
    target: Tensor
    prediction: Tensor | None = None


Push = Callable[[int, Tensor, Tensor], Tensor]
"""(step, winners [n, c, h, w], predictions at them) -> the winners pushed."""


@torch.no_grad()
def branch(
    policy: Policy,
    text: Tensor,
    noise: Noise,
    score: Score,
    trained: Sequence[int],
    candidates: int,
    continue_from: str,
    push: Push | None = None,
    keep_graph: bool = False,
) -> list[Branch]:
    """Trajectories with `candidates` next latents at each trained step, ranked by the reward of their x0hat.

    Args:
        text: embeddings of each sample's prompt [n, tokens, width].
        continue_from: `winner`, `random`, or `guided-winner` (the pushed one).
        push: moves the winners after ranking (TailorPO-G); None leaves them.
        keep_graph: make the trained steps' own predictions with a gradient, so that the first update need not make
            them again. Of a trained step that follows another, that would take a call more and is not done.
    """

    def predict(x: Tensor, step: int) -> Tensor:
        with torch.set_grad_enabled(keep_graph and step in trained):
            return policy.predict(x, step, text)

    sampler, rows = policy.sampler, torch.arange(len(text), device=text.device)
    policy.work.images += len(text)
    x, branches = noise.initial(), []
    prediction = predict(x, 0)
    for step in range(max(trained) + 1):
        mean, sigma = sampler.mean(step, x, prediction.detach()), sampler.noise_level(step, x)
        if step not in trained:
            x = mean + sigma * noise.step(step)
            prediction = predict(x, step + 1)
            continue
        drawn = torch.stack([mean + sigma * noise.step(step, k) for k in range(candidates)], dim=1)
        flat = drawn.flatten(0, 1)
        if step + 1 == sampler.steps:  # y is the picture's latent itself
            predictions, clean = flat, flat
        else:
            predictions = policy.predict(flat, step + 1, text.repeat_interleave(candidates, dim=0))
            clean = sampler.clean(step + 1, flat, predictions)
        rewards = score(clean, step).view(-1, candidates)
        winner, loser = rewards.argmax(1), rewards.argmin(1)
        ahead, won = predictions.view_as(drawn), drawn[rows, winner]
        target = won if push is None else push(step, won, ahead[rows, winner])
        kept = prediction if prediction.requires_grad else None
        branches.append(Branch(step, x, drawn, rewards, winner, loser, target, kept))
        if step == max(trained):
            break
        if continue_from == "guided-winner":
            x = target
            prediction = predict(x, step + 1)
        else:
            chosen = winner if continue_from == "winner" else noise.choice(step, candidates)
            x, prediction = drawn[rows, chosen], ahead[rows, chosen]
    return branches


@dataclass(frozen=True)
class Transition:
    """One step of whole trajectories: from x to y, both [n, c, h, w]; prediction: the policy's at x."""

    step: int
    x: Tensor
    y: Tensor
    prediction: Tensor


@torch.no_grad()
def follow(
    policy: Policy, text: Tensor, noise: Noise, trained: Sequence[int] = (), candidate: int = 0, x: Tensor | None = None
) -> tuple[Tensor, list[Transition]]:
    """Whole trajectories from noise (or from `x`): the clean latents [n, c, h, w], and the trained transitions."""
    sampler, transitions = policy.sampler, []
    policy.work.images += len(text)
    x = noise.initial() if x is None else x
    for step in range(sampler.steps):
        prediction = policy.predict(x, step, text)
        y = sampler.mean(step, x, prediction) + sampler.noise_level(step, x) * noise.step(step, candidate)
        if step in trained:
            transitions.append(Transition(step, x, y, prediction))
        x = y
    return x, transitions
