"""Draws a dashboard as one picture: headings and panels in their places."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from tools.panels import charts, frames
from tools.panels.api import Api
from tools.panels.style import COLUMN_INCHES, COLUMNS, GAP, ROW_INCHES, Theme
from tools.panels.variables import Fields, Values, Window

HEAD = 1.1  # inches above the panels
TITLE = 0.3  # inches of a panel's title
DPI = 80


def draw(dashboard: Fields, values: Values, api: Api, window: Window, theme: Theme, rows: Sequence[str] = ()) -> Figure:
    """Asks all queries and draws all panels. rows: only those below these headings."""
    placed = _of_rows(list(frames.panels(dashboard, values)), rows)
    height = max(_bottom(panel) for panel, _ in placed) * ROW_INCHES + HEAD + GAP
    width = COLUMNS * COLUMN_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.page)
    FigureCanvasAgg(figure)
    _head(figure, dashboard, values, theme)
    for panel, own in placed:
        place = panel["gridPos"]
        left, across = place["x"] * COLUMN_INCHES + GAP / 2, place["w"] * COLUMN_INCHES - GAP
        tall = place["h"] * ROW_INCHES - GAP
        bottom = height - HEAD - (place["y"] + place["h"]) * ROW_INCHES + GAP / 2
        box = Box(figure, left, bottom, across, tall)
        if panel["type"] == "row":
            box.write(0, 0.5, f"⌄  {panel['title']}", theme.text, size=11, weight="bold", va="center")
            continue
        box.frame(theme)
        title = values_in(panel["title"], own)
        box.write(0.1, tall - 0.1, title, theme.text, size=10, va="top", inches=True)
        answers = frames.ask(api, panel, own, window)
        charts.draw(box, panel, answers, window, theme)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a PNG with a palette, which is a third as large."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def values_in(text: str, values: Values) -> str:
    """A title with the variables that it names."""
    for name in values.chosen:
        text = text.replace(f"${name}", values.text(name))
    return text


class Box:
    """The place of a panel on the figure, in inches."""

    def __init__(self, figure: Figure, left: float, bottom: float, width: float, height: float) -> None:
        self.figure, self.left, self.bottom, self.width, self.height = figure, left, bottom, width, height

    def axes(self, left: float, bottom: float, right: float, top: float) -> Any:
        """Axes with these margins, below the title."""
        across, tall = self.figure.get_size_inches()
        width, height = self.width - left - right, self.height - bottom - top
        place = ((self.left + left) / across, (self.bottom + bottom) / tall, width / across, max(0.1, height) / tall)
        return self.figure.add_axes(place)

    def write(self, x: float, y: float, text: str, colour: str, *, inches: bool = False, **style: Any) -> Any:
        """Text at a place of the box: in shares of its size, or in inches from its lower left corner."""
        across, tall = self.figure.get_size_inches()
        x, y = (x, y) if inches else (x * self.width, y * self.height)
        return self.figure.text((self.left + x) / across, (self.bottom + y) / tall, text, color=colour, **style)

    def frame(self, theme: Theme) -> None:
        across, tall = self.figure.get_size_inches()
        corner = (self.left / across, self.bottom / tall)
        patch = FancyBboxPatch(
            corner,
            self.width / across,
            self.height / tall,
            boxstyle="square,pad=0",
            transform=self.figure.transFigure,
            facecolor=theme.panel,
            edgecolor=theme.border,
            linewidth=0.8,
            zorder=-1,
        )
        self.figure.patches.append(patch)


def _of_rows(placed: list[tuple[Fields, Values]], rows: Sequence[str]) -> list[tuple[Fields, Values]]:
    """The panels below some headings, moved together."""
    if not rows:
        return placed
    kept, top, shift, keeping, last = list[tuple[Fields, Values]](), 0, 0, False, 0
    for panel, values in placed:
        place = panel["gridPos"]
        if panel["type"] == "row":
            keeping = panel["title"] in rows
            shift, top = place["y"] - last, top
        if keeping:
            moved: Mapping[str, Any] = {**panel, "gridPos": {**place, "y": place["y"] - shift}}
            kept.append((dict(moved), values))
            last = max(last, _bottom(moved))
    assert kept, f"no row is called {rows}"
    return kept


def _bottom(panel: Mapping[str, Any]) -> int:
    return int(panel["gridPos"]["y"] + panel["gridPos"]["h"])


def _head(figure: Figure, dashboard: Fields, values: Values, theme: Theme) -> None:
    _, tall = figure.get_size_inches()
    figure.text(0.006, 1 - 0.3 / tall, dashboard["title"], color=theme.text, size=15, weight="bold", va="center")
    shown = [each for each in dashboard["templating"]["list"] if each["type"] != "datasource"]
    text = "      ".join(f"{each['label']}:  {values.text(each['name'])}" for each in shown)
    figure.text(0.006, 1 - 0.75 / tall, text, color=theme.faint, size=10, va="center")
