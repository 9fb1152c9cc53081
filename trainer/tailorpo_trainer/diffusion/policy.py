"""The policy: a denoiser with an adapter, text encoder and decoder; without the adapter it is the reference model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.batch_sizes import BatchSizes
from tailorpo_trainer.diffusion.ddim import DDIM

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class ComputeCounters:
    """Rows computed so far; under classifier-free guidance, the prediction of one latent counts two forwards.

    images: sampled trajectories, each of which leads to one picture.
    """

    images: int = 0
    forwards: int = 0
    forwards_with_gradient: int = 0
    decodes: int = 0
    scoring_decodes: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by the names that metrics and checkpoints use."""
        return {
            "images": self.images,
            "denoiser_forwards": self.forwards,
            "denoiser_forwards_with_gradient": self.forwards_with_gradient,
            "decodes": self.decodes,
            "scoring_decodes": self.scoring_decodes,
        }


@dataclass(eq=False)
class Policy:
    """pi_theta(x_next | x, prompt), and the reference model pi_ref when the adapter is disabled.

    Attributes:
        unet, vae, text_encoder, tokenizer: the pipeline's components, frozen except the adapter in `unet`.
        sampler: the DDIM tables.
        guidance_scale: of classifier-free guidance, in sampling and in training; 1 disables it.
        dtype: of the denoiser's autocast; latents, predictions and log-probabilities stay float32.
        batch_sizes: rows in memory at once. latent_shape: [channels, height, width].
        scoring_decoder: a smaller decoder for candidates that are only ranked; None: `vae` decodes them.
        check_stop: called before each denoiser forward without a gradient, when no update is incomplete; may raise.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    sampler: DDIM
    guidance_scale: float
    device: torch.device
    dtype: torch.dtype = torch.float32
    negative_prompt: str = ""
    batch_sizes: BatchSizes = field(default_factory=BatchSizes)
    latent_shape: tuple[int, ...] = (4, 64, 64)
    scoring_decoder: Any = None
    counters: ComputeCounters = field(default_factory=ComputeCounters)
    check_stop: Callable[[], None] | None = None
    _embeddings: dict[str, Tensor] = field(default_factory=dict)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings, float32 [n, tokens, width]; each distinct prompt is encoded once in a run."""
        new = [prompt for prompt in dict.fromkeys([*prompts, self.negative_prompt]) if prompt not in self._embeddings]
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            tokens = self.tokenizer(
                batch,
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                states = self.text_encoder(tokens.input_ids.to(self.device))[0].float()
            self._embeddings.update(zip(batch, states, strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    @property
    def prompt_tokens(self) -> int:
        """How many tokens of a prompt the text encoder reads, without the marks of its begin and end."""
        return int(self.tokenizer.model_max_length) - 2

    def tokenize(self, prompt: str) -> list[int]:
        """All tokens of a prompt, however long, without marks."""
        found: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return found

    def predict(self, x: Tensor, step: int | Tensor, text: Tensor) -> Tensor:
        """The denoiser's prediction with classifier-free guidance, float32 [n, c, h, w] as x.

        Args:
            step: index of the denoising step, or one for each row (int64 [n]).
            text: embeddings of each row's prompt [n, tokens, width], from `embed`.
        """
        timestep = self.sampler.timesteps[step if isinstance(step, int) else step.cpu()].to(self.device)
        timesteps = timestep.expand(len(x))
        if self.guidance_scale == 1:
            return self._denoise(x, timesteps, text)
        negative = self.embed([self.negative_prompt]).expand_as(text)
        both = self._denoise(torch.cat([x, x]), timesteps.repeat(2), torch.cat([negative, text]))
        unconditional, conditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _denoise(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        if self.check_stop is not None and not torch.is_grad_enabled():
            self.check_stop()
        self.counters.forwards += len(x)
        if torch.is_grad_enabled():
            self.counters.forwards_with_gradient += len(x)
        with self._autocast():
            return self.unet(x, timesteps, encoder_hidden_states=text, return_dict=False)[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, float32 [n, 3, H, W] in [0, 1], of clean latents [n, c, h, w]; differentiable."""
        self.counters.decodes += len(latents)
        return self._decode(self.vae, latents)

    def decode_for_scoring(self, latents: Tensor) -> Tensor:
        """As `decode`, but by the scoring decoder where there is one: only for pictures that are ranked."""
        if self.scoring_decoder is None:
            return self.decode(latents)
        self.counters.scoring_decodes += len(latents)
        return self._decode(self.scoring_decoder, latents)

    def _decode(self, vae: Any, latents: Tensor) -> Tensor:
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        batches = [
            vae.decode(batch.to(vae.dtype), return_dict=False)[0].float()
            for batch in scaled.split(self.batch_sizes.decoding)
        ]
        return (torch.cat(batches) / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, predictions are the reference model's, without a gradient: the adapter is disabled, not copied."""
        self.unet.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            self.unet.enable_adapters()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapter's weights, in the order of the denoiser's parameters."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's weights by name: the parameters themselves, no copies."""
        return {name: value for name, value in self.unet.named_parameters() if value.requires_grad}

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
