"""Training pictures: one emoji glyph on a coloured ground, from Google's Noto Color Emoji font (OFL 1.1).

With a fixed caption, position, size, mirror image, small rotation, hue, saturation, value and ground vary. Vividness
varies most, from pale to strongly coloured, so that a preference for colourful pictures can have an effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tailorpo_trainer.tiny_animals import ANIMALS, GROUNDS, SIZE

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_PIXELS = 109  # the only bitmap size of the font
OVERSAMPLING = 2  # factor by which pictures are drawn larger, then averaged, for smooth edges

GLYPHS = dict(
    zip(
        ANIMALS,
        "🐱 🐶 🐴 🐵 🐰 🦓 🕷 🐦 🐮 🦁 🐯 🐻 🦊 🐞 🦋 🐠 🐳 🐭 🐢 🐸 🐓 🦆 🐝 🐷".split(),
        strict=True,
    )
)
GROUND_HSV = {  # hue in degrees, saturation, value
    "red": (2, 0.86, 0.86),
    "orange": (27, 0.90, 0.98),
    "yellow": (51, 0.85, 0.98),
    "green": (128, 0.62, 0.70),
    "blue": (216, 0.76, 0.88),
    "purple": (272, 0.62, 0.72),
    "pink": (331, 0.46, 0.98),
    "white": (60, 0.00, 0.97),
}
PREFIXES = ("a ", "a photo of a ", "")
NO_GROUND = len(GROUNDS)  # index of captions that name no ground


class FontMissingError(RuntimeError):
    """The emoji font was not found."""


@dataclass(frozen=True)
class PictureSet:
    """`pixels` (N, 64, 64, 3) uint8, `animals` (N,) and `grounds` (N,) int64 indices."""

    pixels: NDArray[np.uint8]
    animals: NDArray[np.int64]
    grounds: NDArray[np.int64]


def caption(animal: int, ground: int = NO_GROUND, prefix: int = 0) -> str:
    """The caption of a picture, e.g. `a photo of a cat on a red background`."""
    ending = "" if ground == NO_GROUND else f" on a {GROUNDS[ground]} background"
    return f"{PREFIXES[prefix]}{ANIMALS[animal]}{ending}"


def all_captions() -> list[str]:
    """Every caption, at `caption_index`, and the empty one last."""
    return [
        caption(a, g, p) for p in range(len(PREFIXES)) for a in range(len(ANIMALS)) for g in range(len(GROUNDS) + 1)
    ] + [""]


def caption_index(animal: NDArray[Any], ground: NDArray[Any], prefix: NDArray[Any]) -> NDArray[Any]:
    """Index in `all_captions` of the caption of these indices."""
    return (prefix * len(ANIMALS) + animal) * (len(GROUNDS) + 1) + ground


@cache
def sprites(font: Path = FONT) -> tuple[Image.Image, ...]:
    """One trimmed RGBA glyph an animal."""
    if not font.is_file():
        raise FontMissingError(
            f"no emoji font at {font}: install the Debian package fonts-noto-color-emoji, or pass --font PATH"
        )
    face = ImageFont.truetype(str(font), FONT_PIXELS)
    glyphs = []
    for text in GLYPHS.values():
        canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((10, 10), text, font=face, embedded_color=True)
        glyphs.append(canvas.crop(canvas.getbbox()))
    return tuple(glyphs)


def colour_matrix(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    """A 3x3 colour matrix as in SVG filters: rotates hue (degrees), scales saturation and value, keeps luma."""
    luma = np.tile([0.213, 0.715, 0.072], (3, 1))
    turn = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    cos, sin = math.cos(math.radians(hue)), math.sin(math.radians(hue))
    rotate = luma + cos * (np.eye(3) - luma) + sin * turn
    saturate = luma + saturation * (np.eye(3) - luma)
    return (value * saturate @ rotate).astype(np.float32)


def draw_ground(name: str, vividness: float, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A soft linear gradient around the named colour, (side, side, 3) in 0..1."""
    centre, saturation, value = GROUND_HSV[name]
    hue = centre + rng.uniform(-6, 6)
    saturation *= float(np.clip(0.45 + 0.65 * vividness + rng.normal(0, 0.06), 0.4, 1.12))
    value *= rng.uniform(0.90, 1.03)
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.14)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    slope = (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]) * depth
    # HSV to RGB: channel = value * (1 - saturation * k), k in 0..1 by the distance of the hue.
    k = np.array([min(max(abs((hue / 60 + s) % 6 - 3) - 1, 0), 1) for s in (0, 4, 2)], dtype=np.float32)
    colour = value * (1 - saturation * (1 - k))
    return np.clip(colour * (1 + slope[..., None]), 0, 1)


def draw(animal: int, ground: int, rng: np.random.Generator, font: Path = FONT) -> NDArray[np.uint8]:
    """One picture, (64, 64, 3)."""
    side = SIZE * OVERSAMPLING
    sprite = sprites(font)[animal]
    vividness = rng.uniform()
    scale = side * rng.uniform(0.72, 0.95) / max(sprite.size)
    angle = math.radians(rng.uniform(-6, 6))
    mirror = -1.0 if rng.uniform() < 0.5 else 1.0
    # The glyph may touch the border; only the rotation of its corners may cross it.
    room = [(side - scale * length) / 2 for length in sprite.size]
    centre = [side / 2 + rng.uniform(-1, 1) * min(r, 0.13 * side) for r in room]

    # Pillow takes the inverse map, from a pixel of the picture to one of the glyph.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    rows = [(mirror * cos, mirror * sin), (-sin, cos)]
    matrix = []
    for (a, b), middle in zip(rows, (sprite.width / 2, sprite.height / 2), strict=True):
        matrix += [a, b, middle - a * centre[0] - b * centre[1]]
    drawn = sprite.convert("RGBa").transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    layer = np.asarray(drawn, dtype=np.float32) / 255
    alpha = layer[..., 3:]
    saturation = np.clip(0.35 + 1.05 * vividness + rng.normal(0, 0.08), 0.3, 1.45)
    colours = colour_matrix(rng.uniform(-12, 12), saturation, rng.uniform(0.88, 1.08))
    glyph = np.clip(layer[..., :3] @ colours.T, 0, alpha)  # premultiplied: no channel exceeds alpha

    picture = glyph + (1 - alpha) * draw_ground(GROUNDS[ground], vividness, side, rng)
    picture = picture.reshape(SIZE, OVERSAMPLING, SIZE, OVERSAMPLING, 3).mean((1, 3))
    return np.rint(picture * 255).astype(np.uint8)


def draw_set(count: int, seed: int, font: Path = FONT, progress: bool = False) -> PictureSet:
    """`count` pictures, animals in turn, grounds at random; picture i depends on (seed, i) alone."""
    pixels = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    animals = np.arange(count, dtype=np.int64) % len(ANIMALS)
    grounds = np.empty(count, dtype=np.int64)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        grounds[i] = rng.integers(len(GROUNDS))
        pixels[i] = draw(int(animals[i]), int(grounds[i]), rng, font)
        if progress and (i + 1) % 10_000 == 0:
            print(f"pictures: {i + 1:,} of {count:,}", flush=True)
    return PictureSet(pixels, animals, grounds)


def load_or_draw(path: Path, count: int, seed: int, font: Path = FONT) -> PictureSet:
    """The set stored at `path` (.npy of pixels, labels beside it), which is drawn first if it does not exist."""
    labels = path.with_suffix(".labels.npz")
    if not labels.is_file():
        drawn = draw_set(count, seed, font, progress=True)
        np.save(path, drawn.pixels)
        np.savez(labels, animals=drawn.animals, grounds=drawn.grounds)  # written last: marks the set as complete
    names = np.load(labels)
    return PictureSet(np.load(path, mmap_mode="r"), names["animals"], names["grounds"])


def contact_sheet(
    pictures: NDArray[np.uint8], columns: int, titles: list[str] | None = None, zoom: float = 1.0
) -> Image.Image:
    """Pictures (N, 64, 64, 3) in rows of `columns`; `titles` name the rows."""
    side, gap = round(SIZE * zoom), 4
    margin = 150 if titles and max(map(len, titles)) > 12 else 64 if titles else 0
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (margin + columns * (side + gap), rows * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        tile = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(tile, (margin + column * (side + gap), row * (side + gap)))
        if titles and column == 0:
            pen.text((2, row * (side + gap) + side // 2 - 6), titles[row], fill="black")
    return sheet
