"""The cost of a run before it starts: `tailorpo estimate FILE`. Needs no weights.

Counts come from running the methods on networks that only count (`counts`). FLOPs and memory come from the real
networks on torch's meta device (`network_costs`, `memory`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tailorpo_trainer import prompts
from tailorpo_trainer.diffusion.batch_sizes import batch_sizes
from tailorpo_trainer.diffusion.ddim import ddim, scheduler_from
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.estimate import architectures, counts, memory, network_costs, printing
from tailorpo_trainer.estimate.architectures import Architecture
from tailorpo_trainer.estimate.counts import Counts, Key
from tailorpo_trainer.estimate.memory import Batches, Memory
from tailorpo_trainer.estimate.network_costs import Networks
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import Spec, TailorPOJob

HEADER_BYTES = 100
"""Approximate size of a tensor's entry in the header of a safetensors file: name, dtype, shape and offsets."""


@dataclass(frozen=True)
class Estimate:
    """Work, memory and storage of a document's run.

    Attributes:
        counts: computed rows of each kind. flops: of one row of each kind.
        images: sampled trajectories of an iteration. keep: number of checkpoints that are kept.
        forward_equivalents: the denoiser's FLOPs for one image, in units of a forward without adapter.
        memory: for each precision that the document may run in. batches: rows in memory at once.
        checkpoint_bytes, adapter_bytes: size of one checkpoint, and of the adapter's weights in it.
    """

    job: str
    model: str
    architecture: str
    method: str
    iterations: int
    images: int
    counts: Counts
    flops: Mapping[Key, float]
    forward_equivalents: float
    batches: Batches
    memory: tuple[Memory, ...]
    checkpointing: bool
    checkpoint_bytes: int
    adapter_bytes: int
    keep: int
    notes: tuple[str, ...] = ()


def run(job: TailorPOJob, as_json: bool = False, base: Path | None = None) -> None:
    """Print the estimate. base: the folder that relative paths in the document refer to. Raises as `estimate`."""
    found = estimate(job, base)
    if as_json:
        print(printing.as_json(found))
    else:
        printing.show(found)


def estimate(job: TailorPOJob, base: Path | None = None) -> Estimate:
    """The estimate of a document. Raises `ConfigurationError`, `DataError` or `UnavailableError`."""
    run = rules.resolve(job.spec)
    architecture = architectures.find(run.model)
    counted, notes = count_work(run, architecture, base)
    measured: list[Memory] = []
    networks = None
    for precision in reversed(memory.precisions(run)):
        networks = memory.networks(architecture, run, precision)
        measured.insert(0, memory.memory(networks, run, counted, precision))
    assert networks is not None
    flops, reference_flops = _flops(networks, run, counted)
    denoiser = sum(flops[key] * rows for key, rows in counted.iteration.items() if key[0].startswith("forward"))
    adapter = network_costs.parameter_bytes(networks.adapter)
    return Estimate(
        job=job.metadata.name,
        model=run.model.name,
        architecture=architecture.name,
        method=run.method.name,
        iterations=run.training.iterations,
        images=counted.images,
        counts=counted,
        flops=flops,
        forward_equivalents=denoiser / counted.images / reference_flops,
        batches=memory.batches(run, counted, networks.pixels),
        memory=tuple(measured),
        checkpointing=run.training.gradient_checkpointing,
        checkpoint_bytes=_checkpoint_bytes(networks, run),
        adapter_bytes=adapter,
        keep=run.checkpoint.keep,
        notes=notes,
    )


def row_costs(run: Spec) -> dict[str, float]:
    """FLOPs of one row of each kind that a run counts in its `totals`; those of rewards are unknown."""
    networks = memory.networks(architectures.find(run.model), run, memory.precisions(run)[0])
    denoiser = networks.denoise(1, "adapter")
    costs = {
        "denoiser_forward": denoiser.forward,
        "denoiser_backward": denoiser.backward,
        "decode": networks.decode(1).forward,
    }
    if networks.scoring_decoder is not None:
        costs["scoring_decode"] = networks.decode(1, scoring=True).forward
    return costs


def count_work(run: Spec, architecture: Architecture, base: Path | None = None) -> tuple[Counts, tuple[str, ...]]:
    """The counts alone, and notes about what they leave out; run: resolved by `rules.resolve`."""
    sampling, notes = run.sampling, ["Rewards' own networks are counted neither in FLOPs nor in memory."]
    table = ddim(scheduler_from(architecture.scheduler), sampling.steps, sampling.eta, sampling.timestep_spacing)
    counted = counts.count(run, table, batch_sizes(run.training, architecture.pixels(run.sampling)))
    try:
        counted.run["text", "prompts"] = _encoded(run, base)
    except ConfigurationError:  # prompts of a ConfigMap are in the cluster
        notes.append("Prompts that only the cluster has are not counted as encoded.")
    return counted, tuple(notes)


def _flops(networks: Networks, run: Spec, counted: Counts) -> tuple[dict[Key, float], float]:
    """FLOPs of one row of each kind that a run computes, and of a denoiser forward without the adapter."""
    rows = memory.batches(run, counted, networks.pixels)
    training = networks.denoise(rows.update, "adapter").each(rows.update)
    reference = networks.denoise(1, adapted=False)
    guidance_cost = networks.denoise(rows.guidance, "latent").each(rows.guidance) if rows.guidance else training
    decode = networks.decode(1, gradient=("decode backward", "guidance") in counted.run)
    scoring = decode
    if networks.scoring_decoder is not None:
        scoring = networks.decode(1, gradient=("scoring decode backward", "guidance") in counted.run, scoring=True)
    encode = networks.encode(1) if ("text", "prompts") in counted.run else None

    def one(what: str, purpose: str) -> float:
        denoise = {"reference": reference, "guidance": guidance_cost}.get(purpose, training)
        match what:
            case "forward":
                return denoise.forward
            case "forward backward":
                return denoise.backward
            case "decode":
                return decode.forward
            case "decode backward":
                return decode.backward
            case "scoring decode":
                return scoring.forward
            case "scoring decode backward":
                return scoring.backward
            case "text" if encode is not None:
                return encode.forward
        return 0.0

    return {key: one(*key) for key in counted.run}, reference.forward


def _encoded(run: Spec, base: Path | None) -> int:
    """Number of distinct prompts; the text encoder encodes each once in a run."""
    training = run.training
    texts = prompts.load(run.prompts, base)
    held_out = prompts.load(run.evaluation.prompts, base) if run.evaluation.prompts else texts
    picked = training.iterations * training.prompts_per_iteration
    # Prompts are drawn without replacement until all are used, so `len(texts)` draws contain every prompt.
    indices = range(len(texts)) if picked >= len(texts) else prompts.draw(texts, training.seed, 0, picked)
    distinct = {texts[index] for index in indices} | {run.sampling.negative_prompt}
    if counts.evaluations(run):
        distinct |= set(held_out[: run.evaluation.images])
    return len(distinct)


def _checkpoint_bytes(networks: Networks, run: Spec) -> int:
    """Bytes of adapter, AdamW's two moments and step counts, and the moving average if the run keeps one."""
    adapter, tensors = network_costs.parameter_bytes(networks.adapter), len(networks.adapter)
    copies = 1 + memory.MOMENTS + (run.optimizer.ema_decay is not None)
    return copies * (adapter + tensors * HEADER_BYTES) + tensors * (4 + HEADER_BYTES)


__all__ = ["Architecture", "Estimate", "estimate", "row_costs", "run"]
