"""Sample from a finished run and measure it, the base model beside the trained one."""

import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import checkpoint, files, models, rewards
from tailorpo_trainer.diffusion.noise import Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.errors import DataError
from tailorpo_trainer.evaluation import contact_sheet, measurement
from tailorpo_trainer.evaluation.comparison import Comparison
from tailorpo_trainer.evaluation.measurement import Measurement
from tailorpo_trainer.evaluation.recognition import Judge, Recognition
from tailorpo_trainer.results import locations
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.spec.job import Spec

FRESH = 1_000_003
"""Added to the run's seed, so that the noise differs from that of the evaluations during training."""


@dataclass(frozen=True)
class TrainedRun:
    """A run's policy with its newest weights, which were saved after `iteration` iterations."""

    output: RunFolder
    run: Spec
    policy: Policy
    iteration: int


def load(folder: Path) -> TrainedRun:
    """The newest checkpoint of an output folder, on its base model; of the moving average if the run keeps one.

    Raises `ConfigurationError` if this is not the folder of a run, `DataError` if it has no usable checkpoint.
    """
    place = locations.of(folder)
    output, job = RunFolder(folder), place.job
    newest = checkpoint.latest(place.open())
    if newest is None:
        raise DataError(f"{place.storage} holds no checkpoint yet: run the job first, or wait for its first one")
    weights = newest.tensors("ema" if "ema" in newest.groups else "adapter")
    run = job.spec
    # The scoring decoder only ranks candidates in training; these pictures need the model's own decoder.
    model = run.model.model_copy(update={"scoring_decoder": None})
    policy = models.load_policy(run.model_copy(update={"model": model}))
    adapter = policy.adapter()
    if adapter.keys() != weights.keys():
        raise DataError(f"{newest.uri} holds other weights than {output.job} describes: was one of them changed?")
    with torch.no_grad():
        for name, value in adapter.items():
            value.copy_(weights[name])
    return TrainedRun(output, run, policy, newest.step)


def sample(
    folder: Path, prompts: Sequence[str], images: int, seed: int, to: Path, *, before: bool = True, size: int = 0
) -> Path:
    """Sample `images` pictures over the prompts in turn, and write them and a contact sheet into the folder `to`.

    Args:
        prompts: if empty, the prompts that the run was evaluated on.
        before: sample also from the base model, on the same noise.
        size: pixels of a picture's longer side on the sheet; 0 chooses one (see `contact_sheet.compose`).
    Returns:
        The path of the sheet, `to/sheet.png`.
    """
    trained = load(folder)
    wanted = list(prompts) or trained.output.read_prompts()[1]
    files.make_folder(to)
    names = ["before", "after"] if before else ["after"]
    shown = {name: _sample(trained, wanted, images, seed, to, name) for name in names}
    texts = [wanted[number % len(wanted)] for number in range(images)]
    path = to / "sheet.png"
    _save(contact_sheet.compose(shown, texts[: contact_sheet.MOST], size), path)
    return path


def _sample(trained: TrainedRun, prompts: Sequence[str], images: int, seed: int, to: Path, name: str) -> list[Any]:
    """Sample and write the pictures of one model; returns the first of them, for the sheet."""
    policy, batch = trained.policy, trained.policy.batch_sizes.sampling
    digits, number, shown = max(3, len(str(images - 1))), 0, []
    with policy.reference() if name == "before" else nullcontext():
        for _, pictures in measurement.picture_batches(policy, prompts, images, seed, batch, Purpose.SAMPLING):
            for picture in pictures.cpu():
                image = contact_sheet.image(picture)
                _save(image, to / f"{number:0{digits}d}-{name}.png")
                if number < contact_sheet.MOST:
                    shown.append(image)
                number += 1
    return shown


def _save(image: Any, path: Path) -> None:
    file = io.BytesIO()
    image.save(file, "PNG")
    files.replace(path, file.getvalue())


def compare(folder: Path, images: int, prompts: Sequence[str] = (), seed: int | None = None) -> Comparison:
    """Measure base and trained model on held-out noise; by default with the run's held-out prompts and its seed."""
    trained = load(folder)
    run, policy = trained.run, trained.policy
    reward = rewards.load(run.rewards, policy.device)
    extra = run.evaluation.rewards
    watched = rewards.load(extra, policy.device, "spec.evaluation.rewards") if extra else None
    wanted = list(prompts) or trained.output.read_prompts()[1]
    noise_seed = run.training.seed + FRESH if seed is None else seed
    batch = policy.batch_sizes.sampling
    shipped = run.model.name == models.SHIPPED

    def measure() -> tuple[Measurement, Recognition | None]:
        judge = Judge(policy.device) if shipped else None
        update = judge.update if judge else None
        found = measurement.measure(policy, reward, watched, wanted, images, noise_seed, batch, keep=0, on_batch=update)
        return found, judge.compute() if judge else None

    with policy.reference():
        before, judged_before = measure()
    after, judged_after = measure()
    recognised = (judged_before, judged_after) if judged_before and judged_after and judged_after.images else None
    return Comparison(trained.iteration, images, before, after, recognised)
