"""What a run's folder can do afterwards: draw pictures and measure, the base model beside the trained one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorpo_trainer import checkpoint, evaluate, models, rewards
from tailorpo_trainer.evaluate import Measurement
from tailorpo_trainer.exits import DataError
from tailorpo_trainer.noise import Purpose
from tailorpo_trainer.outputs import Output
from tailorpo_trainer.policy import Policy
from tailorpo_trainer.spec import Spec

FRESH = 1_000_003
"""Added to the run's seed, so that noise differs from that of the evaluations made while it trained."""


@dataclass(frozen=True)
class Trained:
    """A run's policy with its newest weights. `iteration`: when they were saved."""

    output: Output
    run: Spec
    policy: Policy
    iteration: int


def load(folder: Path) -> Trained:
    """The newest checkpoint of an output folder (its average, where one is kept), on the model it was trained on.

    Raises `ConfigurationError` if this is no run's folder, `DataError` if it holds no checkpoint yet.
    """
    output = Output(folder)
    job = output.read_job()
    newest = checkpoint.latest(checkpoint.open_store(folder))
    if newest is None:
        raise DataError(f"{folder} holds no checkpoint yet: run the job first, or wait for its first one")
    weights = newest.tensors("ema" if "ema" in newest.groups else "adapter")
    policy = models.load_policy(job.spec)
    with torch.no_grad():
        for name, value in policy.adapter().items():
            value.copy_(weights[name])
    return Trained(output, job.spec, policy, newest.step)


def sample(
    folder: Path, prompts: Sequence[str], images: int, seed: int, to: Path, *, before: bool = True, size: int = 0
) -> Path:
    """Draw `images` pictures over the prompts in turn, and write them and one sheet of all.

    Args:
        prompts: empty for those the run was evaluated on.
        before: also draw the base model's, on the same noise, beside each.
        size: pixels of a picture's side on the sheet; 0 for as it is, or 128 if that is smaller.
    Returns:
        The sheet, `to/sheet.png`.
    """
    trained = load(folder)
    wanted = list(prompts) or trained.output.read_prompts()[1]
    after, texts = _draw(trained, wanted, images, seed)
    pictures = {"after": after}
    if before:
        with trained.policy.reference():
            pictures = {"before": _draw(trained, wanted, images, seed)[0], "after": after}
    to.mkdir(parents=True, exist_ok=True)
    rows = list(pictures.values())
    for name, drawn in pictures.items():
        for number, picture in enumerate(drawn):
            _image(picture).save(to / f"{number:03d}-{name}.png")
    path = to / "sheet.png"
    _sheet(rows, texts, list(pictures), size).save(path)
    return path


def _draw(trained: Trained, prompts: Sequence[str], images: int, seed: int) -> tuple[Tensor, list[str]]:
    batch = trained.run.training.sampling_batch_size or 64
    texts, pictures = evaluate.draw(trained.policy, prompts, images, seed, batch, Purpose.SAMPLING)
    return pictures, texts


@dataclass(frozen=True)
class Comparison:
    """Before and after on the same noise. Intervals are 95 %, from the standard error of n pictures."""

    iteration: int
    images: int
    before: Measurement
    after: Measurement

    def rows(self) -> list[dict[str, Any]]:
        """One row a score: means, half widths of their intervals, and of the paired difference."""
        scores = {"reward": (self.before.reward, self.after.reward)}
        scores |= {name: (self.before.parts[name], self.after.parts[name]) for name in self.before.parts}
        if len(self.before.parts) == 1 and torch.equal(self.before.reward, next(iter(self.before.parts.values()))):
            del scores["reward"]  # the sum of one reward of weight 1 is that reward
        return [
            {
                "score": name,
                "before": float(before.mean()),
                "before_interval": _interval(before),
                "after": float(after.mean()),
                "after_interval": _interval(after),
                "difference": float((after - before).mean()),
                "difference_interval": _interval(after - before),
            }
            for name, (before, after) in scores.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "images": self.images,
            "scores": self.rows(),
            "diversity": {"before": self.before.diversity, "after": self.after.diversity},
        }


def compare(folder: Path, images: int, prompts: Sequence[str] = (), seed: int | None = None) -> Comparison:
    """Measure the base model and the trained one on held-out noise (and the run's held-out prompts, by default)."""
    trained = load(folder)
    run, policy = trained.run, trained.policy
    reward = rewards.load(run.rewards, policy.device)
    extra = run.evaluation.rewards
    watched = rewards.load(extra, policy.device, "spec.evaluation.rewards") if extra else None
    wanted = list(prompts) or trained.output.read_prompts()[1]
    drawn_from = run.training.seed + FRESH if seed is None else seed
    batch = run.training.sampling_batch_size or 64

    def measure() -> Measurement:
        return evaluate.measure(policy, reward, watched, wanted, images, drawn_from, batch, keep=0)

    with policy.reference():
        before = measure()
    return Comparison(trained.iteration, images, before, measure())


def evaluate_command(folder: Path, images: int, prompts: Sequence[str], seed: int | None, as_json: bool) -> None:
    """Print a comparison as a table, or as JSON."""
    found = compare(folder, images, prompts, seed)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
        return
    print(f"{found.images} pictures on held-out noise, base model against iteration {found.iteration}; ± is 95 %")
    for row in found.rows():
        print(
            f"  {row['score']:24} {row['before']:9.4g} ± {row['before_interval']:<8.2g}"
            f" -> {row['after']:9.4g} ± {row['after_interval']:<8.2g}"
            f" paired difference {row['difference']:+.4g} ± {row['difference_interval']:.2g}"
        )
    if found.before.diversity is not None and found.after.diversity is not None:
        print(f"  {'diversity':24} {found.before.diversity:9.4g}            -> {found.after.diversity:9.4g}")


def _interval(values: Tensor) -> float:
    """Half the width of the 95 % interval of the mean."""
    return 1.96 * float(values.std()) / len(values) ** 0.5


def _image(picture: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _sheet(rows: Sequence[Tensor], texts: Sequence[str], names: Sequence[str], size: int) -> Any:
    """All pictures in a grid, each group (before, after) side by side above its prompt."""
    from PIL import Image, ImageDraw, ImageFont

    side = size or max(128, rows[0].shape[-1])
    font = ImageFont.load_default(max(11, side // 12))
    gap, caption = side // 16, side // 4
    wide = len(rows) * side + gap
    columns = max(1, min(len(texts), 1600 // wide))
    lines = -(-len(texts) // columns)
    sheet = Image.new("RGB", (columns * wide + gap, lines * (side + caption) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(texts):
        left, top = gap + number % columns * wide, gap + number // columns * (side + caption)
        for place, drawn in enumerate(rows):
            picture = _image(drawn[number]).resize((side, side), Image.Resampling.NEAREST if drawn.shape[-1] < side else Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + place * side, top))
        label = text if len(rows) == 1 else f"{text}: {', '.join(names)}"
        limit = wide - gap
        while label and pen.textlength(label, font=font) > limit:
            label = label[:-2].rstrip(" …") + "…"
        pen.text((left, top + side + 2), label, fill="black", font=font)
    return sheet
