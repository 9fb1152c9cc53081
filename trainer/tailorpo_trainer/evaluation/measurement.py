"""Measure a policy on prompts and noise that are not used in training."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.signals import Stop
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.rewards.clip_score import ClipScore
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.rollout.trajectories import sample_trajectories

SMALL = 32
"""Side in pixels at which pictures are compared, so that diversity means shapes and colours, not noise."""


@dataclass(frozen=True)
class Measurement:
    """Scores of n pictures in the order of their noise, so that two policies can be compared picture by picture.

    Attributes:
        prompts: of each picture.
        reward: the weighted sum that is maximised [n]. term_scores: raw scores [n] by the reward's name.
        diversity: mean RMS difference (pixels in [0, 1]) between pictures of one prompt; None if no prompt has two.
        pictures: the first few [m, 3, H, W], in [0, 1].
        diversity_error: standard error of `diversity`; None if there are only two pictures.
        feature_diversity, feature_diversity_error: the same for 1 - cosine of CLIP embeddings; None unless
            `clip-score` is among the rewards.
    """

    prompts: list[str]
    reward: Tensor
    term_scores: dict[str, Tensor]
    diversity: float | None
    pictures: Tensor
    diversity_error: float | None = None
    feature_diversity: float | None = None
    feature_diversity_error: float | None = None


@torch.no_grad()
def picture_batches(
    policy: Policy,
    prompts: Sequence[str],
    count: int | range,
    seed: int,
    batch: int = 64,
    purpose: Purpose = Purpose.EVALUATION,
) -> Iterator[tuple[list[str], Tensor]]:
    """Sample pictures over the prompts in turn; yields batches of prompts and pictures [n, 3, H, W] in [0, 1].

    count: the number of pictures, or the range of the picture numbers to sample.
    """
    numbers = range(count) if isinstance(count, int) else count
    for start in range(0, len(numbers), batch):
        samples = numbers[start : start + batch]
        wanted = [prompts[n % len(prompts)] for n in samples]
        noise = Noise((seed, purpose, 0), samples, policy.latent_shape, policy.device)
        clean, _ = sample_trajectories(policy, policy.embed(wanted), noise)
        yield wanted, policy.decode(clean)


def sample_pictures(
    policy: Policy,
    prompts: Sequence[str],
    count: int,
    seed: int,
    batch: int = 64,
    purpose: Purpose = Purpose.EVALUATION,
) -> tuple[list[str], Tensor]:
    """All of `picture_batches` together: the prompts, and the pictures [count, 3, H, W] on the CPU."""
    wanted, pictures = zip(*picture_batches(policy, prompts, count, seed, batch, purpose), strict=True)
    return [prompt for texts in wanted for prompt in texts], torch.cat([some.cpu() for some in pictures])


@torch.no_grad()
def measure(
    policy: Policy,
    reward: RewardSum,
    watched: RewardSum | None,
    prompts: Sequence[str],
    count: int,
    seed: int,
    batch: int = 64,
    keep: int = 32,
    world: World | None = None,
    on_batch: Callable[[Tensor, Sequence[str]], None] | None = None,
) -> Measurement:
    """Sample `count` pictures, and score them by the maximised reward and by the rewards that are only watched.

    Memory holds one batch, the first `keep` pictures, and small copies of all. Each process of `world` samples its
    share; the result covers all. on_batch: called with each batch [n, 3, H, W] of this process and its prompts.
    """
    world = world or World(Stop())
    mine = world.share(count)
    number = mine.start
    totals, kept, small, features = [], [], [], []
    clip = _clip(reward, watched)
    term_scores: dict[str, list[Tensor]] = defaultdict(list)
    for wanted, pictures in picture_batches(policy, prompts, mine, seed, batch):
        if on_batch is not None:
            on_batch(pictures, wanted)
        scores = reward(pictures, wanted)
        found = dict(scores.term_scores)
        if watched is not None:
            for name, values in watched(pictures, wanted).term_scores.items():
                found.setdefault(name, values)
        for name, values in found.items():
            term_scores[name].append(values.cpu())
        kept.append(pictures[: max(0, keep - number)].cpu())
        small.append(_shrink(pictures).cpu())
        if clip is not None:
            features.append(clip(pictures).cpu())
        totals.append(scores.total.cpu())
        number += len(wanted)

    def everywhere(rows: list[Tensor]) -> Tensor:
        return world.gather(torch.cat(rows))

    texts = [prompts[n % len(prompts)] for n in range(count)]
    pixels, error = _diversity(everywhere(small), texts)
    angles, angles_error = _diversity(everywhere(features), texts, _cosine_distances) if clip else (None, None)
    return Measurement(
        prompts=texts,
        reward=everywhere(totals),
        term_scores={name: everywhere(values) for name, values in term_scores.items()},
        diversity=pixels,
        pictures=everywhere(kept),
        diversity_error=error,
        feature_diversity=angles,
        feature_diversity_error=angles_error,
    )


def _clip(*sums: RewardSum | None) -> Callable[[Tensor], Tensor] | None:
    """A function that computes the embeddings of the first CLIP model among the rewards, in its term's batches."""
    for term in (term for terms in sums if terms is not None for term in terms.terms):
        if isinstance(clip := term.reward, ClipScore):
            size = term.batch_size
            return lambda pictures: torch.cat([clip.features(batch) for batch in pictures.split(size or len(pictures))])
    return None


def diversity(pictures: Tensor, prompts: Sequence[str]) -> float | None:
    """Mean RMS difference between the pictures [n, 3, H, W] of one prompt, averaged over prompts with at least two.

    It needs no model, and falls when a policy collapses onto one picture. Pictures are compared at `SMALL` pixels.
    """
    return _diversity(_shrink(pictures), prompts)[0]


def _shrink(pictures: Tensor) -> Tensor:
    height, width = (min(SMALL, side) for side in pictures.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(pictures, (height, width))


def _diversity(
    small: Tensor, prompts: Sequence[str], distances: Callable[[Tensor], Tensor] | None = None
) -> tuple[float | None, float | None]:
    """Diversity and its standard error: over the prompts, or the jackknife over the pictures of a single prompt."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    # For each prompt: the sum of each picture's distances to the others.
    sums = [(distances or _rms_distances)(small[mine].flatten(1)) for mine in rows.values() if len(mine) > 1]
    if not sums:
        return None, None
    means = torch.stack([each.sum() / (len(each) * (len(each) - 1)) for each in sums])
    error = None
    if len(means) > 1:
        error = float(means.std()) / len(means) ** 0.5
    elif (n := len(sums[0])) > 2:
        without = (sums[0].sum() - 2 * sums[0]) / ((n - 1) * (n - 2))
        error = float((without - without.mean()).square().sum() * (n - 1) / n) ** 0.5
    return float(means.mean()), error


def _rms_distances(pictures: Tensor) -> Tensor:
    """[n, pixels] -> float64 [n]: the sum of each picture's RMS differences from all others."""
    exact = "donot_use_mm_for_euclid_dist"  # matrix products would lose the digits of nearly equal pictures
    sums = [torch.cdist(some, pictures, compute_mode=exact).double().sum(1) for some in pictures.split(256)]
    return torch.cat(sums) / pictures.shape[1] ** 0.5


def _cosine_distances(features: Tensor) -> Tensor:
    """[n, d], of unit length -> float64 [n]: the sum of each row's cosine distances from all others."""
    exact = features.double()
    return len(exact) - exact @ exact.sum(0)
