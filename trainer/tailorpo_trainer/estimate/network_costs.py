"""FLOPs and memory of one call of a network, measured on the meta device, which computes nothing.

The networks are the real ones, built from their configurations without weights. Their real forward and backward passes
run on tensors that have a shape and no data. Torch's `FlopCounterMode` counts FLOPs: 2 for each multiply-add of matrix
products, convolutions and attention, and 0 for everything else. Memory is the largest sum of the storages that are
alive at once; every tensor is tracked from the operation that creates it until it is freed.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# torch has no public names for these two; its own `FlopCounterMode` imports from the same modules.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tailorpo_trainer import models
from tailorpo_trainer.estimate.architectures import Architecture
from tailorpo_trainer.spec.job import TrainingSpec

META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """FLOPs of one call, forward and backward, and its peak memory in bytes without weights and inputs."""

    forward: float
    backward: float
    peak: int

    def each(self, rows: int) -> "Cost":
        """The FLOPs of one of `rows` rows, which is exact because FLOPs are linear in rows; the peak of all."""
        return Cost(self.forward / rows, self.backward / rows, self.peak)


class Networks:
    """A pipeline's networks on the meta device, the denoiser with the document's adapter.

    Args:
        dtype: of the denoiser's autocast, or float32.
        vae_dtype: of the decoder's weights and arithmetic.
    """

    def __init__(
        self, architecture: Architecture, run: TrainingSpec, dtype: torch.dtype, vae_dtype: torch.dtype
    ) -> None:
        from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        models.silence_libraries()
        self.dtype, self.tokens = dtype, architecture.tokens
        self._measured: dict[Any, Cost] = {}
        with META:
            self.unet: Any = UNet2DConditionModel.from_config(dict(architecture.unet))
            tiny = architecture.vae.get("_class_name") == "AutoencoderTiny"
            self.vae: Any = (AutoencoderTiny if tiny else AutoencoderKL).from_config(dict(architecture.vae))
            self.text_encoder: Any = CLIPTextModel(CLIPTextConfig(**architecture.text_encoder))
            small = architecture.scoring_decoder
            self.scoring_decoder: Any = None if small is None else AutoencoderTiny.from_config(dict(small))
            decoders = [self.vae] if small is None else [self.vae, self.scoring_decoder]
            for network in (self.unet, self.text_encoder, *decoders):
                network.requires_grad_(False).eval()
            without_initial = run.model_copy(update={"lora": run.lora.model_copy(update={"initial": None})})
            models.attach_adapter(self.unet, without_initial)
        self.unet.to(dtype)
        for parameter in self.adapter:
            parameter.data = parameter.data.float()
        self.vae.to(vae_dtype)
        if self.scoring_decoder is not None:
            self.scoring_decoder.to(dtype)
        self.recompute(run.training.gradient_checkpointing)
        self.latent = (int(self.unet.config.in_channels), *architecture.latent_sides(run.sampling))
        self.pixels = architecture.pixels(run.sampling)

    def recompute(self, on: bool) -> None:
        """Enable or disable gradient checkpointing, as `models.load_policy` does."""
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()
        self.unet.train(on)

    @property
    def adapter(self) -> list[nn.Parameter]:
        """The adapter's weights."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def denoise(self, rows: int, gradient: str = "none", adapted: bool = True) -> Cost:
        """Denoise so many rows in one call.

        gradient: `adapter` as in training, `latent` as in guidance by the reward gradient, or `none`.
        adapted: False for the reference model.
        """
        key = (rows, gradient, adapted, self.unet.training)
        if key not in self._measured:
            self._measured[key] = self._denoise(rows, gradient, adapted)
        return self._measured[key]

    def _denoise(self, rows: int, gradient: str, adapted: bool) -> Cost:
        x = torch.empty(rows, *self.latent, device=META, requires_grad=gradient == "latent")
        timesteps = torch.empty(rows, dtype=torch.int64, device=META)
        text = torch.empty(rows, self.tokens, self.text_encoder.config.hidden_size, device=META)

        def forward() -> Tensor:
            # A view, because FlopCounterMode does not support leaf tensors as a module's inputs.
            output: Tensor = self.unet(x.view_as(x), timesteps, encoder_hidden_states=text, return_dict=False)[
                0
            ].float()
            return output

        if not adapted:
            self.unet.disable_adapters()
        try:
            inputs: dict[str, list[Any]] = {"adapter": [*self.adapter], "latent": [x], "none": []}
            return _measure(forward, inputs[gradient], self.dtype)
        finally:
            self.unet.enable_adapters()

    def decode(self, rows: int, gradient: bool = False, scoring: bool = False) -> Cost:
        """Decode so many latents in one call. gradient: to the latents. scoring: by the scoring decoder."""
        decoder = self.scoring_decoder if scoring else self.vae
        latents = torch.empty(rows, *self.latent, dtype=decoder.dtype, device=META, requires_grad=gradient)

        def forward() -> Tensor:
            pictures: Tensor = decoder.decode(latents.view_as(latents), return_dict=False)[0].float()
            return (pictures / 2 + 0.5).clamp(0, 1)

        return _measure(forward, [latents] if gradient else [], torch.float32)

    def encode(self, prompts: int) -> Cost:
        """Encode so many prompts in one call."""
        tokens = torch.empty(prompts, self.tokens, dtype=torch.int64, device=META)
        return _measure(lambda: self.text_encoder(tokens)[0], [], torch.float32)


def parameter_bytes(network: nn.Module | list[nn.Parameter]) -> int:
    """Bytes of a network's weights."""
    parameters = network.parameters() if isinstance(network, nn.Module) else network
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _measure(forward: Callable[[], Tensor], inputs: list[Any], dtype: torch.dtype) -> Cost:
    """Measure forward, and backward to `inputs` if there are any."""
    flops = FlopCounterMode(display=False)
    with torch.set_grad_enabled(bool(inputs)), _accelerator_kernels(dtype), _LiveMemory() as live_memory, flops:
        output = forward()
        forward_flops = flops.get_total_flops()
        if inputs:
            torch.autograd.grad(output, inputs, torch.empty_like(output), allow_unused=True)
    return Cost(forward_flops, flops.get_total_flops() - forward_flops, live_memory.peak)


LOW_PRECISION = ("linear", "conv2d", "scaled_dot_product_attention")
FULL_PRECISION = ("group_norm", "layer_norm", "softmax")


@contextmanager
def _accelerator_kernels(dtype: torch.dtype) -> Iterator[None]:
    """Inside, operations are those of CPUs and accelerators: fused attention, and the dtypes of autocast.

    The meta device would use unfused attention, which keeps matrices of tokens by tokens that real devices do not keep,
    and it has no autocast. The dtypes are those of CUDA's autocast for the operations of these networks. (A
    TorchFunctionMode would not do: it is disabled in a backward pass, which recomputes the forward pass under
    gradient checkpointing.)
    """

    def casting(function: Callable[..., Any], to: torch.dtype) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if dtype != torch.float32:
                args = tuple(_cast(value, to) for value in args)
                kwargs = {name: _cast(value, to) for name, value in kwargs.items()}
            return function(*args, **kwargs)

        return call

    own = {name: getattr(F, name) for name in (*LOW_PRECISION, *FULL_PRECISION)}
    chosen = own | {"scaled_dot_product_attention": _fused_attention}
    try:
        for name, function in chosen.items():
            setattr(F, name, casting(function, dtype if name in LOW_PRECISION else torch.float32))
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **_: Any,
) -> Tensor:
    output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p)[0]
    return output  # a mask changes neither the counted FLOPs nor the memory much


class _LiveMemory(TorchDispatchMode):
    """Bytes of the storages that were created inside and are still alive (`now`), and their maximum (`peak`)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._known.add(value.untyped_storage())  # weights and inputs are not counted
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._track(value.untyped_storage())
        return result

    def _track(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.now -= size
