"""The peak memory of a run, measured on the same meta networks as its FLOPs."""

from dataclasses import dataclass

import torch

from tailorpo_trainer.diffusion.batch_sizes import batch_sizes
from tailorpo_trainer.diffusion.policy import PRECISIONS
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.estimate.architectures import Architecture
from tailorpo_trainer.estimate.counts import Counts
from tailorpo_trainer.estimate.network_costs import Networks, parameter_bytes
from tailorpo_trainer.models import sources
from tailorpo_trainer.places import local_path
from tailorpo_trainer.spec.job import Model, Spec

LIBRARIES = 800 << 20
"""Main memory of Python with torch, diffusers, transformers and PEFT: 0.74 to 0.77 GiB as measured on Linux."""

MOMENTS = 2
"""AdamW's moments, each as large as the adapter."""


@dataclass(frozen=True)
class Memory:
    """Bytes in one precision, without the rewards' networks and fragmentation.

    Attributes:
        weights: of denoiser, decoders and text encoder. state: of adapter, gradient, AdamW's moments, moving average.
        update, update_checkpointed: forward and backward of one micro-batch, without and with gradient checkpointing.
        sampling: the largest forward without a gradient. decoding: one batch of pictures.
        guidance: the reward gradient of `tailorpo-g`, otherwise 0.
        peak: weights, state and the largest of the others that the document's settings use; without the libraries.
        loading: main memory at the most while the model is loaded, with the libraries; also beside an accelerator.
        main_memory: at the most of a run on a CPU, with the libraries.
    """

    precision: str
    weights: int
    state: int
    update: int
    update_checkpointed: int
    sampling: int
    decoding: int
    guidance: int
    peak: int
    loading: int
    main_memory: int


@dataclass(frozen=True)
class Batches:
    """Rows in memory at once: of the denoiser (two for a latent under classifier-free guidance), or of the decoder.

    scoring: latents in the scoring decoder, which then replaces the model's own decoder in reward guidance too.
    """

    update: int
    sampling: int
    decoding: int
    guidance: int
    guidance_decoding: int
    scoring: int = 0


def precisions(run: Spec) -> list[str]:
    """The precisions that a document may run in: `auto` is fp32 on CPUs; on accelerators bf16, or fp16 of that size."""
    return ["fp32", "bf16"] if run.training.precision == "auto" else [run.training.precision]


def batches(run: Spec, counts: Counts, pixels: int) -> Batches:
    """The rows of a run's largest calls. pixels: height x width of one picture."""
    training, largest, sizes = run.training, counts.largest, batch_sizes(run.training, pixels)
    samples = training.prompts_per_iteration * training.samples_per_prompt
    sampled = min(sizes.sampling, samples)
    evaluated = min(sizes.sampling, run.evaluation.images) if counts.evaluations else 0
    each_update = -(-samples * counts.trained_rows // training.updates_per_iteration)
    forwards = largest.get(("forward", "rollout"), 1)
    decoded = max(largest.get(("decode", "scoring"), 0) * sampled, evaluated)
    scored = largest.get(("scoring decode", "scoring"), 0) * sampled
    guided = max(largest.get((what, "guidance"), 0) for what in ("decode", "scoring decode"))
    return Batches(
        update=int(min(sizes.training, each_update) * largest["forward", "training"]),
        sampling=int(max(sampled * max(forwards, largest.get(("forward", "scoring"), 0)), evaluated * forwards)),
        decoding=int(1 if training.vae_slicing else min(sizes.decoding, decoded)),
        guidance=int(min(sizes.training, sampled) * largest.get(("forward", "guidance"), 0)),
        guidance_decoding=int(min(sizes.training, sampled) * guided),
        scoring=int(min(1 if training.vae_slicing else sizes.decoding, scored)),
    )


def networks(architecture: Architecture, run: Spec, precision: str) -> Networks:
    """The meta networks in the dtypes that `models.load_policy` uses."""
    dtype = PRECISIONS[precision]
    upcast = bool(architecture.vae.get("force_upcast", True))
    return Networks(architecture, run, dtype, torch.float32 if upcast else dtype)


def memory(networks: Networks, run: Spec, counts: Counts, precision: str) -> Memory:
    """Measure the largest calls of a run on its networks."""
    rows = batches(run, counts, networks.pixels)
    checkpointing = run.training.gradient_checkpointing
    update = {}
    for enabled in (not checkpointing, checkpointing):
        networks.recompute(enabled)
        update[enabled] = networks.denoise(rows.update, "adapter").peak
    guidance = networks.denoise(rows.guidance, "latent").peak if rows.guidance else 0
    if rows.guidance_decoding:
        scoring = rows.scoring > 0
        guidance += networks.decode(rows.guidance_decoding, gradient=True, scoring=scoring).peak
    sampling, decoding = networks.denoise(rows.sampling).peak, networks.decode(rows.decoding).peak
    if rows.scoring:
        decoding = max(decoding, networks.decode(rows.scoring, scoring=True).peak)
    adapter = parameter_bytes(networks.adapter)
    decoders = parameter_bytes(networks.vae)
    if networks.scoring_decoder is not None:
        decoders += parameter_bytes(networks.scoring_decoder)
    weights = parameter_bytes(networks.unet) - adapter + decoders + parameter_bytes(networks.text_encoder)
    state = adapter * (2 + MOMENTS + (run.optimizer.ema_decay is not None))
    peak = weights + state + max(update[checkpointing], sampling, decoding, guidance)
    loading = LIBRARIES + _loading(networks, run)
    return Memory(
        precision=precision,
        weights=weights,
        state=state,
        update=update[False],
        update_checkpointed=update[True],
        sampling=sampling,
        decoding=decoding,
        guidance=guidance,
        peak=peak,
        loading=loading,
        main_memory=max(loading, LIBRARIES + peak),
    )


def _loading(networks: Networks, run: Spec) -> int:
    """Bytes of all weights in float32, and of the largest file beside them if it is not in float32.

    Weights are loaded in float32 whatever the precision is. A file in float32 is mapped into memory and used as it is;
    one in 16 bits is there until its weights are converted.
    """
    parts = [networks.unet, networks.vae, networks.text_encoder]
    if networks.scoring_decoder is not None:
        parts.append(networks.scoring_decoder)
    numbers: list[int] = [sum(each.numel() for each in part.parameters()) for part in parts]
    numbers[0] -= sum(each.numel() for each in networks.adapter)
    beside = 2 * max(numbers) if _in_16_bits(run.model, numbers[0]) else 0
    return 4 * sum(numbers) + beside


def _in_16_bits(model: Model, numbers: int) -> bool:
    """Whether the file of a denoiser with so many numbers holds them in 16 bits; for a hub id, its variant says so."""
    folder = local_path(model.name)
    if folder is None or not folder.is_dir():
        return model.variant is not None
    try:
        chosen = sources.choose_weights(sources.files_of(folder), model)
        return sum((folder / name).stat().st_size for name in chosen if name.startswith("unet/")) < 3 * numbers
    except (OSError, ConfigurationError):
        return model.variant is not None
