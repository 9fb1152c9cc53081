"""How much is computed at once where the document does not say: as much as pictures of that size allow."""

from dataclasses import dataclass

from tailorpo_trainer.spec.job import Training

MEGAPIXEL = 2**20


@dataclass(frozen=True)
class BatchSizes:
    """Rows in memory at once: trajectories drawn, rows of a forward with a gradient, latents decoded."""

    sampling: int = 64
    training: int = 256
    decoding: int = 64


def batch_sizes(training: Training, pixels: int) -> BatchSizes:
    """About four megapixels of pictures drawn, one trained on and one decoded at a time: at 512 x 512 some 6 GiB.

    Args:
        pixels: of one picture, height x width.
    """
    megapixel = max(1, MEGAPIXEL // pixels)
    return BatchSizes(
        sampling=training.sampling_batch_size or min(64, max(1, 4 * MEGAPIXEL // pixels)),
        training=training.micro_batch_size or megapixel,
        decoding=training.decode_batch_size or min(64, megapixel),
    )
