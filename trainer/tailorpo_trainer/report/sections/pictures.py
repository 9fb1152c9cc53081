"""Pictures of evaluations as data URIs, within a budget, so that the page is one file that opens quickly."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Evaluation, Run
from tailorpo_trainer.stats import Value

SHOWN = 24
"""Largest number of pairs on the page."""

BUDGET = 1_500_000
"""Characters of all pictures of a page; evaluations between the first and the last that exceed it are left out."""

SIDE = 256
"""Larger pictures are scaled down."""


@dataclass(frozen=True)
class Picture:
    """A picture to embed; `uri` is empty if it could not be read."""

    uri: str
    score: Value
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Pair:
    """The same noise and prompt before and after."""

    number: int
    prompt: str
    before: Picture
    after: Picture

    @property
    def gain(self) -> Value:
        a, b = self.after.score, self.before.score
        return None if a is None or b is None else a - b


@dataclass(frozen=True)
class Gallery:
    """Pairs of the first and the last evaluation, and all evaluations in between that fit.

    Attributes:
        iterations: those shown, from first to last. frames: for each of them, one picture for each pair.
    """

    pairs: list[Pair]
    before: int = 0
    after: int = 0
    total: int = 0
    pixelated: bool = False
    iterations: list[int] = field(default_factory=list)
    frames: list[list[Picture]] = field(default_factory=list)

    @property
    def decimals(self) -> int | None:
        """Of all scores, which are read beside each other."""
        return number_format.common_decimals(picture.score for frame in self.frames for picture in frame)


def gallery(run: Run) -> Gallery | None:
    """The pictures of a run; None if there are none."""
    if not run.evaluations:
        return None
    first, last = run.evaluations[0], run.evaluations[-1]
    total = max(_count(run, first), _count(run, last))
    numbers = range(min(SHOWN, total))
    before, after = _frame(run, first, numbers), _frame(run, last, numbers)
    if not any(picture.uri for picture in before + after):
        return None
    prompts = last.prompts or first.prompts
    pairs = [
        Pair(n, prompts[n] if n < len(prompts) else "", b, a) for n, b, a in zip(numbers, before, after, strict=True)
    ]
    shown, frames = _between(run, numbers, [before, after])
    largest = max(max(p.width, p.height) for p in before + after)
    return Gallery(pairs, first.iteration, last.iteration, total, largest <= 128, shown, frames)


def frame(run: Run, evaluation: Evaluation, count: int) -> list[Picture]:
    """The first `count` pictures of an evaluation."""
    return _frame(run, evaluation, range(count))


def _between(run: Run, numbers: range, ends: list[list[Picture]]) -> tuple[list[int], list[list[Picture]]]:
    used = sum(_size(frame) for frame in ends)
    each = max(1, max(_size(frame) for frame in ends))
    room = max(0, int((BUDGET - used) // each))
    spread = [run.evaluations[k] for k in stats.pick(len(run.evaluations), room + 2)[1:-1]]
    chosen = [(run.evaluations[0], ends[0])]
    for evaluation in spread:
        pictures = _frame(run, evaluation, numbers)
        used += _size(pictures)
        if used > BUDGET:
            break
        if any(picture.uri for picture in pictures):
            chosen.append((evaluation, pictures))
    chosen.append((run.evaluations[-1], ends[1]))
    return [evaluation.iteration for evaluation, _ in chosen], [pictures for _, pictures in chosen]


def _frame(run: Run, evaluation: Evaluation, numbers: range) -> list[Picture]:
    found = []
    for n in numbers:
        uri, width, height = _read(run.output.sample(evaluation.iteration, n))
        found.append(Picture(uri, evaluation.scores[n] if n < len(evaluation.scores) else None, width, height))
    return found


def _count(run: Run, evaluation: Evaluation) -> int:
    folder = run.output.sample(evaluation.iteration, 0).parent
    return max((int(path.stem) + 1 for path in _pngs(folder) if path.stem.isdigit()), default=0)


def _pngs(folder: Path) -> Iterator[Path]:
    return folder.glob("*.png")


def _size(pictures: list[Picture]) -> int:
    return sum(len(picture.uri) for picture in pictures)


def _read(path: Path) -> tuple[str, int, int]:
    """A data URI and the picture's own size; lossless for small pictures, where single pixels are visible."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        return "", 0, 0
    width, height = picture.size
    out = BytesIO()
    if max(width, height) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(out, "WEBP", quality=85, method=4)
    else:
        picture.save(out, "WEBP", lossless=True, quality=50, method=2)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode(), width, height
