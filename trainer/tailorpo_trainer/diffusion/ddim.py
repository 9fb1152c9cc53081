"""DDIM with noise (Song et al. 2020, eq. 12 and 16) as tables of coefficients: tensor in, tensor out.

Whatever the model predicts (noise, velocity or the clean latent), the mean of the next latent and the estimate
of the clean one are affine in the latent x and the prediction m:

    mean = mean_x[i] x + mean_m[i] m        x0hat = clean_x[i] x + clean_m[i] m

so a step is four numbers and a sigma, taken in float64 from the scheduler's own alpha table.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.errors import ConfigurationError

SMALLEST_SIGMA = 1e-4
"""Steps with less noise (the last one under `set_alpha_to_one`) leave nothing to choose between: not trained."""


@dataclass(frozen=True)
class DDIM:
    """The steps of one trajectory, index 0 the noisiest; all tables float64 of shape [steps].

    Attributes:
        timesteps: what the denoiser is told, int64 [steps].
        sigma: standard deviation of the noise that a step adds.
        mean_x, mean_m: coefficients of the next latent's mean.
        clean_x, clean_m: coefficients of x0hat, the estimate of the clean latent.
    """

    timesteps: Tensor
    sigma: Tensor
    mean_x: Tensor
    mean_m: Tensor
    clean_x: Tensor
    clean_m: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def mean(self, step: int | Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """Mean of p(x_next | x); x and prediction [n, ...], step an index or one for each row."""
        return _at(self.mean_x, step, x) * x + _at(self.mean_m, step, x) * prediction

    def clean(self, step: int | Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """x0hat: the clean latent that the prediction at x implies."""
        return _at(self.clean_x, step, x) * x + _at(self.clean_m, step, x) * prediction

    def noise_level(self, step: int | Tensor, x: Tensor) -> Tensor:
        """sigma, shaped to broadcast over x."""
        return _at(self.sigma, step, x)

    @property
    def trainable(self) -> list[int]:
        """Steps whose Gaussian has a density worth the name."""
        return [i for i, sigma in enumerate(self.sigma.tolist()) if sigma >= SMALLEST_SIGMA]


def ddim(scheduler: Any, steps: int, eta: float, spacing: str | None = None) -> DDIM:
    """The tables of a diffusers scheduler's noise schedule, under DDIM with `eta`.

    `scheduler` is any diffusers scheduler of the SD 1.x/2.x family (its betas and prediction type are what counts;
    its own update rule is replaced by DDIM's). Raises `ConfigurationError` where the mean would not be affine.
    """
    from diffusers import DDIMScheduler

    config = dict(scheduler.config)
    config.update(clip_sample=False, thresholding=False)
    if spacing is not None:
        config["timestep_spacing"] = spacing
    own = DDIMScheduler.from_config(config)
    train_steps = own.config.num_train_timesteps
    if steps > train_steps:
        raise ConfigurationError(
            f"spec.sampling.steps: {steps} is more than the model was trained with: at most {train_steps}"
        )
    own.set_timesteps(steps)
    timesteps = own.timesteps.clone()
    previous = timesteps - train_steps // steps  # as DDIMScheduler.step does
    table = own.alphas_cumprod.double()
    abar = table[timesteps]
    abar_next = torch.where(previous >= 0, table[previous.clamp(min=0)], own.final_alpha_cumprod.double())
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
    noise_next = (1 - abar_next - sigma**2).clamp(min=0).sqrt()
    match own.config.prediction_type:
        case "epsilon":
            clean_x, clean_m = abar.rsqrt(), -((1 - abar) / abar).sqrt()
            noise_x, noise_m = torch.zeros_like(abar), torch.ones_like(abar)
        case "v_prediction":
            clean_x, clean_m = abar.sqrt(), -(1 - abar).sqrt()
            noise_x, noise_m = (1 - abar).sqrt(), abar.sqrt()
        case "sample":
            clean_x, clean_m = torch.zeros_like(abar), torch.ones_like(abar)
            noise_x, noise_m = (1 - abar).rsqrt(), -(abar / (1 - abar)).sqrt()
        case other:
            raise ConfigurationError(
                f"spec.model.name: its scheduler predicts {other!r}: epsilon, v_prediction or sample can be trained"
            )
    signal = abar_next.sqrt()
    return DDIM(
        timesteps=timesteps,
        sigma=sigma,
        mean_x=signal * clean_x + noise_next * noise_x,
        mean_m=signal * clean_m + noise_next * noise_m,
        clean_x=clean_x,
        clean_m=clean_m,
    )


def choose_steps(sampler: DDIM, count: int, choose: str, draw: float = 0.0) -> list[int]:
    """Indices of the steps to train, ascending.

    `spread` takes the middle of each of `count` equal parts; `random` takes one from each part at the fraction
    `draw` in [0, 1) rotates to, so that every step is trained equally often.
    """
    able = sampler.trainable
    count = min(count, len(able))
    match choose:
        case "early":
            return able[:count]
        case "late":
            return able[-count:]
        case "spread":
            return [able[int((k + 0.5) * len(able) / count)] for k in range(count)]
        case "random":
            return sorted({able[int((k + draw) * len(able) / count)] for k in range(count)})
    raise ValueError(choose)


def _at(table: Tensor, step: int | Tensor, x: Tensor) -> Tensor:
    """The coefficient of each row, in x's dtype and on its device, shaped to broadcast over x [n, ...]."""
    values = table[step] if isinstance(step, int) else table[step.cpu()].reshape(-1, *[1] * (x.dim() - 1))
    return values.to(device=x.device, dtype=x.dtype)
