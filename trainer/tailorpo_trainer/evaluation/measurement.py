"""Measure a policy on prompts and noise that training never sees."""

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
from tailorpo_trainer.rollout.trajectories import follow

SMALL = 32
"""Pixels of a side at which pictures are compared: shapes and colours, not noise."""


@dataclass(frozen=True)
class Measurement:
    """Scores of n pictures, in the order of their noise, so that two policies compare picture by picture.

    Attributes:
        prompts: of each picture.
        reward: the weighted sum that is maximised [n]. parts: each raw score by name [n].
        diversity: mean RMS difference (pixels in [0, 1]) between pictures of one prompt; None if no prompt has two.
        pictures: the first few [m, 3, H, W], in [0, 1].
        diversity_error: standard error of `diversity`; None where two pictures are all there is.
        feature_diversity, feature_diversity_error: the same of what a CLIP model sees in them (1 - cosine of its
            embeddings), where `clip-score` is among the rewards.
    """

    prompts: list[str]
    reward: Tensor
    parts: dict[str, Tensor]
    diversity: float | None
    pictures: Tensor
    diversity_error: float | None = None
    feature_diversity: float | None = None
    feature_diversity_error: float | None = None


@torch.no_grad()
def batches(
    policy: Policy,
    prompts: Sequence[str],
    count: int | range,
    seed: int,
    batch: int = 64,
    purpose: Purpose = Purpose.EVALUATION,
) -> Iterator[tuple[list[str], Tensor]]:
    """Pictures over the prompts in turn, some at a time: the prompt of each, and [n, 3, H, W] in [0, 1].

    count: how many, or the numbers of those that are wanted.
    """
    numbers = range(count) if isinstance(count, int) else count
    for start in range(0, len(numbers), batch):
        samples = numbers[start : start + batch]
        wanted = [prompts[n % len(prompts)] for n in samples]
        noise = Noise((seed, purpose, 0), samples, policy.latent_shape, policy.device)
        clean, _ = follow(policy, policy.embed(wanted), noise)
        yield wanted, policy.decode(clean)


def draw(
    policy: Policy,
    prompts: Sequence[str],
    count: int,
    seed: int,
    batch: int = 64,
    purpose: Purpose = Purpose.EVALUATION,
) -> tuple[list[str], Tensor]:
    """The same all at once: prompts, and pictures [count, 3, H, W] on the CPU."""
    wanted, pictures = zip(*batches(policy, prompts, count, seed, batch, purpose), strict=True)
    return [prompt for part in wanted for prompt in part], torch.cat([part.cpu() for part in pictures])


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
    look: Callable[[Tensor, Sequence[str]], None] | None = None,
) -> Measurement:
    """Draw `count` pictures and score them by the rewards that are maximised and those that are only watched.

    One batch at a time is in memory, and of all that was drawn the first `keep` pictures and small copies. Each process
    of `world` draws its share; what comes back is of all of them. look: is shown every batch [n, 3, H, W] of this
    process with its prompts.
    """
    world = world or World(Stop())
    mine = world.share(count)
    number = mine.start
    totals, kept, small, features = [], [], [], []
    clip = _clip(reward, watched)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for wanted, pictures in batches(policy, prompts, mine, seed, batch):
        if look is not None:
            look(pictures, wanted)
        scores = reward(pictures, wanted)
        found = dict(scores.parts)
        if watched is not None:
            for name, part in watched(pictures, wanted).parts.items():
                found.setdefault(name, part)
        for name, part in found.items():
            parts[name].append(part.cpu())
        kept.append(pictures[: max(0, keep - number)].cpu())
        small.append(_shrink(pictures).cpu())
        if clip is not None:
            features.append(clip(pictures).cpu())
        totals.append(scores.total.cpu())
        number += len(wanted)

    def everywhere(rows: list[Tensor]) -> Tensor:
        return world.gather(torch.cat(rows))

    drawn = [prompts[n % len(prompts)] for n in range(count)]
    spread, error = _spread(everywhere(small), drawn)
    seen, seen_error = _spread(everywhere(features), drawn, _angles) if clip is not None else (None, None)
    return Measurement(
        prompts=drawn,
        reward=everywhere(totals),
        parts={name: everywhere(part) for name, part in parts.items()},
        diversity=spread,
        pictures=everywhere(kept),
        diversity_error=error,
        feature_diversity=seen,
        feature_diversity_error=seen_error,
    )


def _clip(*sums: RewardSum | None) -> Callable[[Tensor], Tensor] | None:
    """The embeddings of the first CLIP model among the rewards, in batches where its term asks for them."""
    for term in (term for terms in sums if terms is not None for term in terms.terms):
        if isinstance(clip := term.reward, ClipScore):
            size = term.batch_size
            return lambda pictures: torch.cat([clip.features(part) for part in pictures.split(size or len(pictures))])
    return None


def diversity(pictures: Tensor, prompts: Sequence[str]) -> float | None:
    """Mean RMS difference between all pairs of pictures of one prompt, averaged over prompts with at least two.

    Model-free: it falls when a policy collapses onto one picture, whatever that shows. Pictures are compared small.
    """
    return _spread(_shrink(pictures), prompts)[0]


def _shrink(pictures: Tensor) -> Tensor:
    height, width = (min(SMALL, side) for side in pictures.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(pictures, (height, width))


def _spread(
    small: Tensor, prompts: Sequence[str], distances: Callable[[Tensor], Tensor] | None = None
) -> tuple[float | None, float | None]:
    """Diversity, and its standard error: between prompts, or for one prompt by leaving out each picture in turn."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows[prompt].append(row)
    # Of each prompt's pictures, the sums of their distances to the others.
    sums = [(distances or _distances)(small[mine].flatten(1)) for mine in rows.values() if len(mine) > 1]
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


def _distances(pictures: Tensor) -> Tensor:
    """[n, pixels] -> [n], float64: the sum of each one's RMS differences from all others."""
    exact = "donot_use_mm_for_euclid_dist"  # or pictures that are nearly equal would lose all digits
    parts = [torch.cdist(part, pictures, compute_mode=exact).double().sum(1) for part in pictures.split(256)]
    return torch.cat(parts) / pictures.shape[1] ** 0.5


def _angles(features: Tensor) -> Tensor:
    """[n, d], of unit length -> [n], float64: the sum of each one's cosine distances from all others."""
    exact = features.double()
    return len(exact) - exact @ exact.sum(0)
