"""One picture of many: each group (before, after) side by side, named above and its prompt below."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 64
"""Groups on a sheet: more would be a picture that no viewer opens."""

WIDTH = 1500
"""Pixels that a sheet may be wide, unless one group needs more."""

SMALLEST, LARGEST = 128, 320
"""Pixels of a picture's longer side, between which it is shown as it is."""

INK, GREY, PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"
LINES = 2
"""Lines of a prompt that are shown."""


def image(picture: Tensor) -> Any:
    """[3, H, W] in [0, 1] as a PIL image."""
    from PIL import Image

    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def lay_out(groups: Mapping[str, Sequence[Any]], texts: Sequence[str], size: int = 0) -> Any:
    """A sheet of PIL images.

    Args:
        groups: by name, images of one size; the nth of each belong together. A single name is not written.
        texts: the prompt of each.
        size: pixels of an image's longer side; 0 for what is well seen.
    """
    from PIL import Image, ImageDraw, ImageFont

    names = list(groups)
    width, height = _shown_as(groups[names[0]][0].size, size)
    pixels = max(12, min(20, max(width, height) // 11))
    font = ImageFont.load_default(pixels)
    line = round(1.35 * pixels)
    inner, outer = max(2, width // 48), max(12, width // 7)
    wide = len(names) * width + (len(names) - 1) * inner
    head = line + 2 if len(names) > 1 else 0
    columns = _columns(len(texts), (WIDTH - outer) // (wide + outer))
    wrapped = [_wrap(text, wide, font) for text in texts]
    used = max(len(lines) for lines in wrapped)
    high = head + height + 6 + used * line
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (columns * (wide + outer) + outer, rows * (high + outer) + outer), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, lines in enumerate(wrapped):
        left = outer + number % columns * (wide + outer)
        top = outer + number // columns * (high + outer)
        for place, name in enumerate(names):
            at = left + place * (width + inner)
            if head:
                pen.text((at + width // 2, top), name, fill=GREY, font=font, anchor="ma")
            sheet.paste(groups[name][number].resize((width, height), Image.Resampling.LANCZOS), (at, top + head))
        for index, text in enumerate(lines):
            below = top + head + height + 6 + index * line
            pen.text((left + wide // 2, below), text, fill=INK, font=font, anchor="ma")
    return sheet


def _shown_as(original: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height on the sheet: whole multiples where a picture grows by itself."""
    longer = max(original)
    if size:
        factor = size / longer
    elif longer < SMALLEST:
        factor = float(-(-SMALLEST // longer))
    else:
        factor = min(1.0, LARGEST / longer)
    width, height = (max(1, round(factor * side)) for side in original)
    return width, height


def _columns(count: int, room: int) -> int:
    """As many as there is room for, or a few less where that leaves fewer places empty."""
    most = max(1, min(count, room))
    return min(range(most, max(1, most // 2) - 1, -1), key=lambda columns: -count % columns)


def _wrap(text: str, limit: int, font: Any) -> list[str]:
    """The first lines of a text, each at most `limit` pixels wide; an ellipsis where it goes on."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < LINES:
        if font.getlength(rest) <= limit:
            return [*lines, rest]
        # The longest beginning that fits: at a space if one is near, else in the middle of a word.
        end = next((n for n in range(min(len(rest), limit), 0, -1) if font.getlength(rest[:n] + "…") <= limit), 1)
        space = rest.rfind(" ", 0, end + 1)
        cut = space if space > end // 2 else end
        if len(lines) + 1 == LINES:
            return [*lines, rest[:cut].rstrip(" ,;.") + "…"]
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines or [""]
