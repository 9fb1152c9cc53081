"""The memory that a run needs at its peak, from the same meta networks as its FLOPs."""

from dataclasses import dataclass

import torch

from tailorpo_trainer.diffusion.batch_sizes import batch_sizes
from tailorpo_trainer.diffusion.policy import PRECISIONS
from tailorpo_trainer.estimate.architectures import Architecture
from tailorpo_trainer.estimate.counts import Counts
from tailorpo_trainer.estimate.network_costs import Networks, size
from tailorpo_trainer.spec.job import Spec

MOMENTS = 2
"""Of AdamW, each as large as the adapter."""


@dataclass(frozen=True)
class Memory:
    """Bytes in one precision. Rewards' networks, the libraries and fragmentation come on top.

    Attributes:
        weights: of denoiser, decoder and text encoder. state: adapter, its gradient, AdamW's moments, the
            average.
        update, update_checkpointed: forward and backward of one micro batch, without and with gradient
            checkpointing.
        sampling: the largest forward without a gradient. decoding: one batch of pictures.
        guidance: the push up the reward's gradient (`tailorpo-g`), 0 if there is none.
        peak: weights and state, and the largest of the others as the document sets them.
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


@dataclass(frozen=True)
class Batches:
    """Rows that are in memory at once: denoiser rows (guidance counts two), latents in the decoder.

    scoring: latents in the scoring decoder, which then takes the place of the other in guidance too.
    """

    update: int
    sampling: int
    decoding: int
    guidance: int
    guidance_decoding: int
    scoring: int = 0


def precisions(run: Spec) -> list[str]:
    """`auto` is fp32 on CPUs and bf16 on accelerators: both."""
    return ["fp32", "bf16"] if run.training.precision == "auto" else [run.training.precision]


def batches(run: Spec, counts: Counts, pixels: int) -> Batches:
    """The largest calls of a run. pixels: of one picture."""
    training, largest, at_once = run.training, counts.largest, batch_sizes(run.training, pixels)
    samples = training.prompts_per_iteration * training.samples_per_prompt
    drawn = min(at_once.sampling, samples)
    evaluated = min(at_once.sampling, run.evaluation.images) if counts.evaluations else 0
    each_update = -(-samples * counts.trained_rows // training.updates_per_iteration)
    plain = largest.get(("forward", "rollout"), 1)
    decoded = max(largest.get(("decode", "scoring"), 0) * drawn, evaluated)
    scored = largest.get(("scoring decode", "scoring"), 0) * drawn
    pushed = max(largest.get((what, "guidance"), 0) for what in ("decode", "scoring decode"))
    return Batches(
        update=int(min(at_once.training, each_update) * largest["forward", "training"]),
        sampling=int(max(drawn * max(plain, largest.get(("forward", "scoring"), 0)), evaluated * plain)),
        decoding=int(1 if training.vae_slicing else min(at_once.decoding, decoded)),
        guidance=int(min(at_once.training, drawn) * largest.get(("forward", "guidance"), 0)),
        guidance_decoding=int(min(at_once.training, drawn) * pushed),
        scoring=int(min(1 if training.vae_slicing else at_once.decoding, scored)),
    )


def networks(architecture: Architecture, run: Spec, precision: str) -> Networks:
    """The networks as `models.load_policy` casts them."""
    dtype = PRECISIONS[precision]
    upcast = bool(architecture.vae.get("force_upcast", True))
    return Networks(architecture, run, dtype, torch.float32 if upcast else dtype)


def memory(parts: Networks, run: Spec, counts: Counts, precision: str) -> Memory:
    """Measure the largest calls; the networks may be used further."""
    rows = batches(run, counts, parts.pixels)
    checkpointing = run.training.gradient_checkpointing
    update = {}
    for on in (not checkpointing, checkpointing):
        parts.recompute(on)
        update[on] = parts.denoise(rows.update, "adapter").peak
    guidance = parts.denoise(rows.guidance, "latent").peak if rows.guidance else 0
    if rows.guidance_decoding:
        scoring = rows.scoring > 0
        guidance += parts.decode(rows.guidance_decoding, gradient=True, scoring=scoring).peak
    sampling, decoding = parts.denoise(rows.sampling).peak, parts.decode(rows.decoding).peak
    if rows.scoring:
        decoding = max(decoding, parts.decode(rows.scoring, scoring=True).peak)
    adapter = size(parts.adapter)
    decoders = size(parts.vae) + (0 if parts.scoring_decoder is None else size(parts.scoring_decoder))
    weights = size(parts.unet) - adapter + decoders + size(parts.text_encoder)
    state = adapter * (2 + MOMENTS + (run.optimizer.ema_decay is not None))
    return Memory(
        precision=precision,
        weights=weights,
        state=state,
        update=update[False],
        update_checkpointed=update[True],
        sampling=sampling,
        decoding=decoding,
        guidance=guidance,
        peak=weights + state + max(update[checkpointing], sampling, decoding, guidance),
    )
