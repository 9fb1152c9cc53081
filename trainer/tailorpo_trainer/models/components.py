"""What must hold of a pipeline's components, so that the policy computes what the pipeline itself would.

A component is recognised by its class and by each of its settings that changes what it takes or gives. A setting that
is not known here must have its default: a new version of diffusers may add inputs of which nothing is known yet.
"""

import inspect
import math
from typing import Any

from tailorpo_trainer.models import sources
from tailorpo_trainer.spec.job import Model

ARCHITECTURE = frozenset(
    """
    sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types mid_block_type
    up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding mid_block_scale_factor
    act_fn norm_num_groups norm_eps cross_attention_dim attention_head_dim transformer_layers_per_block
    reverse_transformer_layers_per_block num_attention_heads dual_cross_attention use_linear_projection upcast_attention
    resnet_time_scale_shift resnet_skip_time_act resnet_out_scale_factor time_embedding_type time_embedding_dim
    time_embedding_act_fn timestep_post_act conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim
    mid_block_only_cross_attention cross_attention_norm
    """.split()
)
"""Settings of a UNet2DConditionModel that change its layers, and neither its inputs nor what its output means."""

VAES = ("AutoencoderKL", "AutoencoderTiny")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def check(pipeline: Any, model: Model) -> None:
    """Raise `ConfigurationError` for the first component that is not known to be one of Stable Diffusion 1.x or 2.x."""
    kind = type(pipeline).__name__
    for problem in (_denoiser(pipeline), _text_encoder(pipeline), _decoder(pipeline)):
        if problem:
            raise sources.unsupported_pipeline(model, kind, problem)


def _denoiser(pipeline: Any) -> str | None:
    unet = pipeline.unet
    if type(unet).__name__ != "UNet2DConditionModel":
        return f" with a {type(unet).__name__}"
    config, latent = unet.config, pipeline.vae.config.latent_channels
    if config.in_channels != latent:
        # Inpainting, editing and upscaling models take another picture as additional channels.
        return f" whose denoiser takes {config.in_channels} channels, not {latent}"
    if config.out_channels != latent:  # such as a variance beside the noise
        return f" whose denoiser gives {config.out_channels} channels, not {latent}"
    defaults = inspect.signature(type(unet).__init__).parameters
    for name, parameter in defaults.items():
        if name != "self" and name not in ARCHITECTURE and config.get(name, parameter.default) != parameter.default:
            return f" whose denoiser needs more than text ({name}: {config[name]!r})"
    sides = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size]
    if not all(isinstance(side, int) and side > 0 for side in sides) or len(sides) > 2:
        return f" whose denoiser's config.json has sample_size {config.sample_size!r}, which is no size"
    return None


def _text_encoder(pipeline: Any) -> str | None:
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    if type(encoder).__name__ != "CLIPTextModel":
        return f" with a {type(encoder).__name__}"
    config = getattr(encoder.config, "text_config", encoder.config)
    if getattr(config, "use_attention_mask", False):
        return " whose text encoder wants an attention mask"
    width = pipeline.unet.config.cross_attention_dim
    if config.hidden_size != width:
        return f" whose text embeddings are {config.hidden_size} wide, and its denoiser takes {width}"
    if type(tokenizer).__name__ not in TOKENIZERS:
        return f" with a {type(tokenizer).__name__}"
    if not 2 < tokenizer.model_max_length <= config.max_position_embeddings:
        return (
            f" whose tokenizer has model_max_length {tokenizer.model_max_length}, and its text encoder "
            f"{config.max_position_embeddings} positions"
        )
    if len(tokenizer) > config.vocab_size:
        return f" whose tokenizer has {len(tokenizer)} tokens, and its text encoder {config.vocab_size}"
    return None


def _decoder(pipeline: Any) -> str | None:
    vae = pipeline.vae
    if type(vae).__name__ not in VAES:
        return f" with a {type(vae).__name__}"
    config = vae.config
    if config.out_channels != 3:
        return f" whose decoder gives {config.out_channels} channels, not 3"
    factor, shift = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    if not (isinstance(factor, int | float) and math.isfinite(factor) and factor > 0 and math.isfinite(shift)):
        return f" whose decoder has scaling_factor {factor!r} and shift_factor {shift!r}"
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        return " whose latents are normalised by latents_mean and latents_std"
    return None
