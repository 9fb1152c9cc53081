"""Batch sizes: those of the document, or defaults that need about the same memory at every picture size."""

from dataclasses import dataclass

from tailorpo_trainer.spec.job import Training

MEGAPIXEL = 2**20


@dataclass(frozen=True)
class BatchSizes:
    """Rows in memory at once: sampled trajectories, rows of a micro-batch with a gradient, decoded latents."""

    sampling: int = 64
    training: int = 256
    decoding: int = 64


def batch_sizes(training: Training, pixels: int) -> BatchSizes:
    """By default four megapixels are sampled, one trained on and one decoded at a time: about 6 GiB at 512 x 512.

    Args:
        pixels: height x width of one picture.
    """
    megapixel = max(1, MEGAPIXEL // pixels)
    return BatchSizes(
        sampling=training.sampling_batch_size or min(64, max(1, 4 * MEGAPIXEL // pixels)),
        training=training.micro_batch_size or megapixel,
        decoding=training.decode_batch_size or min(64, megapixel),
    )
