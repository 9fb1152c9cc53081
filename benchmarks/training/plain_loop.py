"""TailorPO in the style of the papers' code: simple, correct, and the baseline of `benchmarks.training.rollout_cost`.

Written for the benchmark from the formulas of `docs/methods.md`, in the style of the official training scripts of DDPO,
D3PO and SPO, but without their code. Its simplifications:

- all T steps of the trajectory are sampled, whichever are trained;
- each candidate is scored separately, with its own denoiser call for x0hat and its own decoding;
- the prediction at the next step is computed again, although the candidate's score needed it too;
- a pair's loss has four log-probabilities, each from its own denoiser call;
- the reference model is a second copy of the denoiser.

`trajectories_at_once` is 1 for the one-by-one loop, or the number of samples for the batched one, which samples, scores
and trains many samples in one call. There is no other difference.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tailorpo_trainer.diffusion.noise import Noise

Rewards = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass
class Calls:
    """The number of computed rows."""

    forwards: int = 0
    forwards_with_gradient: int = 0
    reference_forwards: int = 0
    decodes: int = 0


@dataclass(frozen=True)
class Pair:
    """One trained step of some samples; both next latents were sampled from x."""

    step: int
    rows: slice
    x: Tensor
    winner: Tensor
    loser: Tensor
    weight: Tensor


@dataclass
class PlainLoop:
    """Attributes: the pipeline's components; `reference` is a copy of the denoiser; `calls` counts rows."""

    unet: Any
    reference: Any
    vae: Any
    scheduler: Any
    guidance_scale: float
    steps: int
    eta: float
    beta: float
    calls: Calls = field(default_factory=Calls)

    def iteration(
        self,
        prompts: Sequence[str],
        text: Tensor,
        negative: Tensor,
        noise: Noise,
        trained: Sequence[int],
        rewards: Rewards,
        trajectories_at_once: int,
    ) -> float:
        """Sample all trajectories, then add the gradient of their mean loss to the adapter; returns that loss.

        text, negative: embeddings [n, tokens, width] and [1, tokens, width].
        """
        batches = [slice(at, at + trajectories_at_once) for at in range(0, len(text), trajectories_at_once)]
        pairs = [
            pair
            for rows in batches
            for pair in self.rollout(prompts[rows], text[rows], negative, noise.select(rows), trained, rewards, rows)
        ]
        return self.update(pairs, text, negative, rows=len(text) * len(trained))

    @torch.no_grad()
    def rollout(
        self,
        prompts: Sequence[str],
        text: Tensor,
        negative: Tensor,
        noise: Noise,
        trained: Sequence[int],
        rewards: Rewards,
        rows: slice,
    ) -> list[Pair]:
        x, pairs = noise.initial().to(text.dtype), []
        for step in range(self.steps):
            mean, sigma = self.transition(self.unet, step, x, text, negative)
            if step not in trained:
                x = mean + sigma * noise.step(step).to(x.dtype)
                continue
            first, second = (mean + sigma * noise.step(step, k).to(x.dtype) for k in (0, 1))
            of_first, of_second = (
                self.score_candidate(step, y, text, negative, prompts, rewards) for y in (first, second)
            )
            first_wins = (of_first >= of_second).view(-1, 1, 1, 1)
            winner, loser = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
            pairs.append(Pair(step, rows, x, winner, loser, (of_first != of_second).to(x.dtype)))
            x = winner
        return pairs

    def score_candidate(
        self, step: int, y: Tensor, text: Tensor, negative: Tensor, prompts: Sequence[str], rewards: Rewards
    ) -> Tensor:
        """Reward [n] of the picture that a next latent leads to."""
        clean = y
        if step + 1 < self.steps:
            clean = self.x0hat(step + 1, y, self.predict(self.unet, step + 1, y, text, negative))
        self.calls.decodes += len(clean)
        pictures = self.vae.decode(clean / self.vae.config.scaling_factor, return_dict=False)[0]
        return rewards((pictures / 2 + 0.5).clamp(0, 1).float(), prompts).to(y.dtype)

    def update(self, pairs: Sequence[Pair], text: Tensor, negative: Tensor, rows: int) -> float:
        """-log sigmoid(beta [(lp(y_w) - lp_ref(y_w)) - (lp(y_l) - lp_ref(y_l))]), its mean over all pairs."""
        total = 0.0
        for pair in pairs:
            prompt = text[pair.rows]
            ours = [self.log_probability(self.unet, pair, y, prompt, negative) for y in (pair.winner, pair.loser)]
            with torch.no_grad():
                theirs = [
                    self.log_probability(self.reference, pair, y, prompt, negative) for y in (pair.winner, pair.loser)
                ]
            logit = self.beta * ((ours[0] - theirs[0]) - (ours[1] - theirs[1]))
            loss = (-F.logsigmoid(logit) * pair.weight).sum() / rows
            loss.backward()
            total += float(loss.detach())
        return total

    def log_probability(self, unet: Any, pair: Pair, y: Tensor, text: Tensor, negative: Tensor) -> Tensor:
        """log N(y; mean, sigma^2), its mean over a latent's elements, [n]."""
        mean, sigma = self.transition(unet, pair.step, pair.x, text, negative)
        density = -((y - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        return density.flatten(1).mean(1)

    def transition(self, unet: Any, step: int, x: Tensor, text: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sigma of DDIM's next latent (Song et al. 2020, eq. 12 and 16)."""
        epsilon = self.predict(unet, step, x, text, negative)
        now, following = self.alphas(step)
        sigma = self.eta * ((1 - following) / (1 - now) * (1 - now / following)).sqrt()
        clean = self.x0hat(step, x, epsilon)
        mean = following.sqrt() * clean + (1 - following - sigma**2).sqrt() * epsilon
        return mean, sigma.to(x.dtype)

    def x0hat(self, step: int, x: Tensor, epsilon: Tensor) -> Tensor:
        now, _ = self.alphas(step)
        return (x - (1 - now).sqrt() * epsilon) / now.sqrt()

    def alphas(self, step: int) -> tuple[Tensor, Tensor]:
        """Cumulative alpha at this step's timestep and at the next one's."""
        timestep = int(self.scheduler.timesteps[step])
        following = timestep - self.scheduler.config.num_train_timesteps // self.steps
        table = self.scheduler.alphas_cumprod.double()
        last = self.scheduler.final_alpha_cumprod.double()
        return table[timestep], table[following] if following >= 0 else last

    def predict(self, unet: Any, step: int, x: Tensor, text: Tensor, negative: Tensor) -> Tensor:
        """The guided noise prediction."""
        self.calls.forwards += 2 * len(x)
        self.calls.forwards_with_gradient += 2 * len(x) * torch.is_grad_enabled()
        self.calls.reference_forwards += 2 * len(x) * (unet is self.reference)
        timesteps = self.scheduler.timesteps[step].expand(2 * len(x))
        states = torch.cat([negative.expand_as(text), text])
        both = unet(torch.cat([x, x]), timesteps, encoder_hidden_states=states, return_dict=False)[0]
        unconditional, conditional = both.chunk(2)
        guided: Tensor = unconditional + self.guidance_scale * (conditional - unconditional)
        return guided


def plain_loop(pipeline: Any, adapted: Any, *, guidance_scale: float, steps: int, eta: float, beta: float) -> PlainLoop:
    """The loop for a pipeline with an unchanged denoiser, and a copy of that denoiser with the adapter."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(pipeline.scheduler.config) | {"clip_sample": False})
    assert scheduler.config.prediction_type == "epsilon", "written for models that predict the noise"
    scheduler.set_timesteps(steps)
    reference = copy.deepcopy(pipeline.unet).requires_grad_(False).eval()
    return PlainLoop(adapted, reference, pipeline.vae, scheduler, guidance_scale, steps, eta, beta)
