"""Sample trajectories without computing anything twice.

`sample_branched_trajectories` samples several candidates for the next latent at each trained step, scores them and
continues from one of them. `sample_trajectories` samples whole trajectories, whose final pictures the caller scores.

In a branched trajectory the candidates of a step share one mean, and the prediction that scores the chosen candidate
is also the prediction of the next step. After the last trained step nothing more is sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.noise import Noise
from tailorpo_trainer.diffusion.policy import Policy

Score = Callable[[Tensor, int], Tensor]
"""(clean latents [n k, c, h, w], one sample's k in a row; denoising step) -> rewards [n k]."""


@dataclass(frozen=True)
class BranchPoint:
    """The candidates of one trained step, k from each sample's latent.

    Attributes:
        step: index of the denoising step.
        x: the latents that the candidates were sampled from [n, c, h, w].
        candidates: next latents [n, k, c, h, w]. rewards: of the pictures that they lead to (x0hat) [n, k].
        winner, loser: index of the candidate with the highest and the lowest reward, int64 [n].
        target: the winner's latent, moved by the reward gradient if there is guidance [n, c, h, w].
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


GuideWinners = Callable[[int, Tensor, Tensor], Tensor]
"""(step, winners [n, c, h, w], the policy's predictions at them) -> winners moved by the reward gradient."""


@torch.no_grad()
def sample_branched_trajectories(
    policy: Policy,
    text: Tensor,
    noise: Noise,
    score: Score,
    trained: Sequence[int],
    candidates: int,
    continue_from: str,
    guide: GuideWinners | None = None,
    keep_graph: bool = False,
) -> list[BranchPoint]:
    """Sample trajectories with several candidates at each trained step, ranked by the reward of their x0hat.

    Args:
        text: embeddings of each sample's prompt [n, tokens, width].
        trained: indices of the denoising steps to train. candidates: number of each sample's at such a step.
        continue_from: `winner`, `random`, or `guided-winner` (the `target`).
        guide: moves the winners after ranking (TailorPO-G).
        keep_graph: record the graph of the trained steps' predictions, so that the first update can use them; except
            where a trained step follows another, which would need an additional forward.
    """

    def predict(x: Tensor, step: int) -> Tensor:
        with torch.set_grad_enabled(keep_graph and step in trained):
            return policy.predict(x, step, text)

    sampler, rows = policy.sampler, torch.arange(len(text), device=text.device)
    policy.counters.images += len(text)
    x, branch_points = noise.initial(), []
    prediction = predict(x, 0)
    for step in range(max(trained) + 1):
        mean, sigma = sampler.mean(step, x, prediction.detach()), sampler.noise_level(step, x)
        if step not in trained:
            x = mean + sigma * noise.step(step)
            prediction = predict(x, step + 1)
            continue
        sampled = torch.stack([mean + sigma * noise.step(step, k) for k in range(candidates)], dim=1)
        flat = sampled.flatten(0, 1)
        if step + 1 == sampler.steps:  # the candidates are final latents
            predictions, clean = flat, flat
        else:
            predictions = policy.predict(flat, step + 1, text.repeat_interleave(candidates, dim=0))
            clean = sampler.clean(step + 1, flat, predictions)
        rewards = score(clean, step).view(-1, candidates)
        winner, loser = rewards.argmax(1), rewards.argmin(1)
        next_prediction, target = predictions.view_as(sampled), sampled[rows, winner]
        if guide is not None:
            target = guide(step, target, next_prediction[rows, winner])
        kept = prediction if prediction.requires_grad else None
        branch_points.append(BranchPoint(step, x, sampled, rewards, winner, loser, target, kept))
        if step == max(trained):
            break
        if continue_from == "guided-winner":
            x = target
            prediction = predict(x, step + 1)
        else:
            chosen = winner if continue_from == "winner" else noise.choice(step, candidates)
            x, prediction = sampled[rows, chosen], next_prediction[rows, chosen]
    return branch_points


@dataclass(frozen=True)
class Transition:
    """One denoising step, from latent x to next latent y [n, c, h, w]; prediction: the policy's at x, of that shape."""

    step: int
    x: Tensor
    y: Tensor
    prediction: Tensor


@torch.no_grad()
def sample_trajectories(
    policy: Policy, text: Tensor, noise: Noise, trained: Sequence[int] = (), candidate: int = 0, x: Tensor | None = None
) -> tuple[Tensor, list[Transition]]:
    """Sample trajectories from noise or `x`: clean latents [n, c, h, w], transitions. candidate: the noise stream."""
    sampler, transitions = policy.sampler, []
    policy.counters.images += len(text)
    x = noise.initial() if x is None else x
    for step in range(sampler.steps):
        prediction = policy.predict(x, step, text)
        y = sampler.mean(step, x, prediction) + sampler.noise_level(step, x) * noise.step(step, candidate)
        if step in trained:
            transitions.append(Transition(step, x, y, prediction))
        x = y
    return x, transitions
