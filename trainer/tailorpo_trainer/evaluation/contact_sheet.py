"""A contact sheet: pictures of the same prompt (before, after) side by side, the prompt below them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 64
"""Prompts on a sheet: viewers cannot open larger ones."""

WIDTH = 1500
"""Width limit of a sheet in pixels, unless the pictures of one prompt need more."""

SMALLEST, LARGEST = 128, 320
"""Pixels of a picture's longer side: between these limits it is not resized."""

INK, GREY, PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"
LINES = 2
"""Maximal number of lines of a prompt."""


def image(picture: Tensor) -> Any:
    """A picture, float [3, H, W] in [0, 1], as an 8-bit PIL image."""
    from PIL import Image

    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def compose(groups: Mapping[str, Sequence[Any]], texts: Sequence[str], size: int = 0) -> Any:
    """The sheet, a PIL image.

    Args:
        groups: PIL images of one size by the group's name; the nth of each group stand together. A single group's name
            is not shown.
        texts: the prompt of the nth images.
        size: pixels of an image's longer side; 0 chooses a size between `SMALLEST` and `LARGEST`.
    """
    from PIL import Image, ImageDraw, ImageFont

    names = list(groups)
    width, height = _shown_as(groups[names[0]][0].size, size)
    pixels = max(12, min(20, max(width, height) // 11))
    font = ImageFont.load_default(pixels)
    line = round(1.35 * pixels)
    inner, outer = max(2, width // 48), max(12, width // 7)
    cell_width = len(names) * width + (len(names) - 1) * inner
    head = line + 2 if len(names) > 1 else 0
    columns = _columns(len(texts), (WIDTH - outer) // (cell_width + outer))
    wrapped = [_wrap(text, cell_width, font) for text in texts]
    line_count = max(len(lines) for lines in wrapped)
    cell_height = head + height + 6 + line_count * line
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (columns * (cell_width + outer) + outer, rows * (cell_height + outer) + outer), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, lines in enumerate(wrapped):
        left = outer + number % columns * (cell_width + outer)
        top = outer + number // columns * (cell_height + outer)
        for position, name in enumerate(names):
            x = left + position * (width + inner)
            if head:
                pen.text((x + width // 2, top), name, fill=GREY, font=font, anchor="ma")
            sheet.paste(groups[name][number].resize((width, height), Image.Resampling.LANCZOS), (x, top + head))
        for index, text in enumerate(lines):
            below = top + head + height + 6 + index * line
            pen.text((left + cell_width // 2, below), text, fill=INK, font=font, anchor="ma")
    return sheet


def _shown_as(original: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height on the sheet; small pictures are enlarged by a whole factor."""
    longer = max(original)
    if size:
        factor = size / longer
    elif longer < SMALLEST:
        factor = float(-(-SMALLEST // longer))
    else:
        factor = min(1.0, LARGEST / longer)
    width, height = (max(1, round(factor * side)) for side in original)
    return width, height


def _columns(count: int, limit: int) -> int:
    """The number of columns that leaves the fewest cells empty, between half the limit and the limit."""
    most = max(1, min(count, limit))
    return min(range(most, max(1, most // 2) - 1, -1), key=lambda columns: -count % columns)


def _wrap(text: str, limit: int, font: Any) -> list[str]:
    """The first lines of a text, each at most `limit` pixels wide; an ellipsis if the text is longer."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < LINES:
        if font.getlength(rest) <= limit:
            return [*lines, rest]
        # Cut at the last space if it is in the second half of the line, otherwise within a word.
        end = next((n for n in range(min(len(rest), limit), 0, -1) if font.getlength(rest[:n] + "…") <= limit), 1)
        space = rest.rfind(" ", 0, end + 1)
        cut = space if space > end // 2 else end
        if len(lines) + 1 == LINES:
            return [*lines, rest[:cut].rstrip(" ,;.") + "…"]
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines or [""]
