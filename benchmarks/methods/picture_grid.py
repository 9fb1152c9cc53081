"""The pictures of `docs/methods-compared.md`: the base model and each method on the same prompts and noise."""

from pathlib import Path

from PIL import Image

from benchmarks.methods import plan
from tailorpo_trainer import prompts
from tailorpo_trainer.evaluation import contact_sheet

SIDE = 64
"""Pixels of a picture on the sheet, which is its own size."""


def draw(folder: Path, to: Path) -> None:
    """Draw the first picture of each held-out prompt after the final run of the first seed, one reward below the other.

    folder: written by `sweep`, with REWARD/METHOD/first and last.
    """
    wanted = prompts.builtin("tiny-animals-held-out")
    sheets = []
    for reward in plan.REWARDS:
        runs = {method: folder / reward / method for method in plan.METHODS}
        groups = {"before": _pictures(runs[plan.METHODS[0]] / "first", len(wanted))}
        groups |= {method: _pictures(run / "last", len(wanted)) for method, run in runs.items()}
        sheets.append(contact_sheet.compose(groups, [f"{prompt}, {reward}" for prompt in wanted], SIDE))
    whole = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), contact_sheet.PAPER)
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    whole.save(to, optimize=True)


def _pictures(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))[:count]]
