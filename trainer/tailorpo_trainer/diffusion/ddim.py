"""Stochastic DDIM (Song et al. 2020, eq. 12 and 16) as tables of coefficients.

Whether the model predicts noise, velocity or the clean latent, the mean of the next latent and the estimate of the
clean latent are affine in the latent x and the prediction m:

    mean = mean_x[i] x + mean_m[i] m        x0hat = clean_x[i] x + clean_m[i] m

so each step has four coefficients and a sigma, computed in float64 from the scheduler's own alpha table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.errors import ConfigurationError

SMALLEST_SIGMA = 1e-4
"""Steps with a smaller sigma (the last one under `set_alpha_to_one`) have equal candidates, so are not trained."""
TRAINED_WITH = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("rescale_betas_zero_snr", "prediction_type"),
)
"""What a scheduler's config says of how its model was trained; every scheduler of diffusers has these names."""
LARGEST_COEFFICIENT = 1e3
"""Larger ones divide by next to nothing. Stable Diffusion's largest is 15, at timestep 999."""


@dataclass(frozen=True)
class DDIM:
    """The denoising steps of one trajectory, from the noisiest (index 0); all tables are float64 [steps].

    Attributes:
        timesteps: the denoiser's timestep of each step, int64 [steps].
        sigma: standard deviation of the noise that the step adds.
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
        """Mean of p(x_next | x), [n, ...] as x and prediction; step: one index, or one for each row (int64 [n])."""
        return _coefficient(self.mean_x, step, x) * x + _coefficient(self.mean_m, step, x) * prediction

    def clean(self, step: int | Tensor, x: Tensor, prediction: Tensor) -> Tensor:
        """x0hat, the clean latent that the prediction at x implies; arguments and shapes as `mean`."""
        return _coefficient(self.clean_x, step, x) * x + _coefficient(self.clean_m, step, x) * prediction

    def noise_level(self, step: int | Tensor, x: Tensor) -> Tensor:
        """sigma of the step, or of each row's step, in a shape that broadcasts over x [n, ...]."""
        return _coefficient(self.sigma, step, x)

    @property
    def trainable(self) -> list[int]:
        """Indices of the steps that add enough noise to be trained, ascending."""
        return [i for i, sigma in enumerate(self.sigma.tolist()) if sigma >= SMALLEST_SIGMA]


def ddim(scheduler: Any, steps: int, eta: float, spacing: str | None = None) -> DDIM:
    """The DDIM tables for the noise schedule of a diffusers scheduler.

    Args:
        scheduler: one that diffusers counts among DDIM's relatives; its betas and prediction type are used, its update
            rule is not.
        eta: 0 is deterministic, 1 adds as much noise as DDPM. spacing: `timestep_spacing`; None: the scheduler's.
    Raises `ConfigurationError` for a scheduler of another process, more steps than the model was trained with, or a
    prediction type or schedule whose tables are not finite.
    """
    own = _as_ddim(scheduler, spacing)
    train_steps = own.config.num_train_timesteps
    if steps > train_steps:
        raise ConfigurationError(
            f"spec.sampling.steps: {steps} is more than the model was trained with: at most {train_steps}"
        )
    own.set_timesteps(steps)
    timesteps = own.timesteps.clone()
    if int(timesteps.max()) >= train_steps or int(timesteps.min()) < 0 or bool((timesteps.diff() >= 0).any()):
        raise ConfigurationError(
            f"spec.sampling.steps: {steps} steps, with the scheduler's steps_offset {own.config.steps_offset} and "
            f"timestep_spacing {own.config.timestep_spacing!r}, run from timestep {int(timesteps[0])} to "
            f"{int(timesteps[-1])}, but the model knows {train_steps - 1} to 0, each once: choose fewer steps, or "
            "another spec.sampling.timestepSpacing"
        )
    # Each step ends where the next begins. DDIMScheduler.step goes down by train_steps // steps instead, which is
    # elsewhere for `linspace`, and for `trailing` where the division has a remainder.
    table = own.alphas_cumprod.double()
    abar = table[timesteps]
    abar_next = torch.cat([abar[1:], own.final_alpha_cumprod.double().reshape(1)])
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
    tables = DDIM(
        timesteps=timesteps,
        sigma=sigma,
        mean_x=signal * clean_x + noise_next * noise_x,
        mean_m=signal * clean_m + noise_next * noise_m,
        clean_x=clean_x,
        clean_m=clean_m,
    )
    _check_finite(tables, own.config)
    return tables


def scheduler_from(config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of a `scheduler_config.json`; `ConfigurationError` if its class is none of diffusers."""
    import diffusers

    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise ConfigurationError(f"spec.model.name: its scheduler_config.json names {name}, no scheduler of diffusers")
    return kind.from_config(config)


def _as_ddim(scheduler: Any, spacing: str | None) -> Any:
    """A `DDIMScheduler` of the same noise schedule; `ConfigurationError` if it cannot be shown to be the same."""
    from diffusers import DDIMScheduler

    name, theirs = type(scheduler).__name__, getattr(scheduler, "alphas_cumprod", None)
    relatives = {kind.__name__ for kind in DDIMScheduler().compatibles}
    if name in {*relatives, "DDIMParallelScheduler", "DDPMParallelScheduler"} and theirs is not None:
        # As arguments, because `from_config` drops keys that a config has only as defaults (diffusers issue 3947).
        arguments = {key: value for key, value in scheduler.config.items() if key in TRAINED_WITH}
        arguments |= {"clip_sample": False, "thresholding": False}
        if spacing is not None:
            arguments["timestep_spacing"] = spacing
        own = DDIMScheduler.from_config(scheduler.config, **arguments)
        if len(own.alphas_cumprod) == len(theirs) and torch.allclose(own.alphas_cumprod, theirs.float(), atol=1e-6):
            _check_keys(name, scheduler.config)
            return own
    raise ConfigurationError(
        f"spec.model.name: its scheduler is a {name}, whose noise schedule DDIM does not have: give a model with a "
        "scheduler_config.json as Stable Diffusion 1.x and 2.x have it, such as of DDIMScheduler, PNDMScheduler, "
        "EulerDiscreteScheduler or DPMSolverMultistepScheduler"
    )


def _check_keys(name: str, config: Any) -> None:
    """Raise `ConfigurationError` for a process in continuous time, which the betas do not describe."""
    if config.get("use_flow_sigmas") or config.get("timestep_type", "discrete") != "discrete":
        key = "use_flow_sigmas" if config.get("use_flow_sigmas") else "timestep_type"
        raise ConfigurationError(
            f"spec.model.name: its scheduler, a {name}, has {key}: {config[key]!r}: only the discrete timesteps of "
            "Stable Diffusion 1.x and 2.x can be trained"
        )


def _check_finite(tables: DDIM, config: Any) -> None:
    """Raise `ConfigurationError` if a step divides by a signal or noise of zero."""
    for step, timestep in enumerate(tables.timesteps.tolist()):
        values = [float(getattr(tables, each.name)[step]) for each in fields(tables) if each.name != "timesteps"]
        if not all(map(math.isfinite, values)) or max(map(abs, values)) > LARGEST_COEFFICIENT:
            zero = " (rescale_betas_zero_snr)" if config.rescale_betas_zero_snr else ""
            raise ConfigurationError(
                f"spec.model.name: at timestep {timestep} its noise schedule leaves no signal{zero}, and a model that "
                f"predicts {config.prediction_type!r} cannot be sampled from there: set spec.sampling.timestepSpacing "
                "to leading, or use a model that predicts v_prediction"
            )


def choose_steps(sampler: DDIM, count: int, choose: str, fraction: float = 0.0) -> list[int]:
    """Indices of the steps to train, ascending.

    The trainable steps are divided into `count` equal intervals. `spread` takes the middle of each; `random` takes the
    position `fraction` in [0, 1) of each, so that over a run every step is trained equally often.
    """
    trainable = sampler.trainable
    count = min(count, len(trainable))
    match choose:
        case "early":
            return trainable[:count]
        case "late":
            return trainable[-count:]
        case "spread":
            return [trainable[int((k + 0.5) * len(trainable) / count)] for k in range(count)]
        case "random":
            return sorted({trainable[int((k + fraction) * len(trainable) / count)] for k in range(count)})
    raise ValueError(choose)


def _coefficient(table: Tensor, step: int | Tensor, x: Tensor) -> Tensor:
    """Each row's coefficient, in x's dtype and on its device, shaped to broadcast over x [n, ...]."""
    values = table[step] if isinstance(step, int) else table[step.cpu()].reshape(-1, *[1] * (x.dim() - 1))
    return values.to(device=x.device, dtype=x.dtype)
