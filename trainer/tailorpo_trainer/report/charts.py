"""Line charts, drawn once for each x axis; the script only adds the values that hovering shows.

The SVG is stretched over the plot (`preserveAspectRatio="none"`, line widths that do not scale) and all text is HTML
outside of it, so that a chart fits any width and its letters keep their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.svg_paths import Series, SeriesPaths, series_paths
from tailorpo_trainer.stats import Value

POINTS = 500
"""The largest number of points of a curve."""

AXES = {
    "iterations": "iterations",
    "images": "training images",
    "queries": "reward queries",
    "forwards": "denoiser forwards",
    "flops": "FLOPs",
    "seconds": "training seconds",
}
"""The name of each x axis by its key in the page."""

WHOLE = frozenset(AXES) - {"flops", "seconds"}
"""Axes of counts: no ticks between whole numbers."""

Grid = Mapping[str, Sequence[Value]]
"""The x values of several series, by axis."""


@dataclass(frozen=True)
class Chart:
    """Curves over common axes. level, level_name: a horizontal line for reference, and its label."""

    key: str
    title: str
    series: Sequence[Series]
    note: str = ""
    level: float | None = None
    level_name: str = ""
    bounds: tuple[float, float] | None = None
    wide: bool = False
    full: bool = False
    watched: bool = False


@dataclass(frozen=True)
class Variant:
    """A chart on one x axis: its paths, and its tick labels at per cent of the width."""

    axis: str
    label: str
    paths: list[SeriesPaths]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class DrawnChart:
    """A chart as the template needs it; `data` is for the script."""

    chart: Chart
    variants: list[Variant]
    ticks: list[tuple[float, str]]
    level: float | None
    summary: str
    data: dict[str, Any]


def draw(chart: Chart, grids: Mapping[str, Grid]) -> DrawnChart | None:
    """Draw a chart. All charts on `grids` have the same x ranges, so that they are aligned.

    None if the chart has no value, or no x axis.
    """
    bottom, top = _range(chart)
    ends = x_ends(grids)
    if bottom is None or top is None or not ends:
        return None
    variants = []
    for axis, end in ends.items():
        paths = [
            series_paths(series, grids[series.grid][axis], end, bottom, top)
            for series in chart.series
            if axis in grids[series.grid]
        ]
        ticks = [(100 * tick / end, text) for tick, text in labels(0, end, 5, axis in WHOLE)]
        variants.append(Variant(axis, AXES[axis], paths, ticks))
    height, about = top - bottom, 6 if chart.wide or chart.full else 4
    return DrawnChart(
        chart=chart,
        variants=variants,
        ticks=[(100 * (tick - bottom) / height, text) for tick, text in labels(bottom, top, about)],
        level=None if chart.level is None else 100 * (chart.level - bottom) / height,
        summary=_summary(chart),
        data={
            "bottom": bottom,
            "top": top,
            "series": [
                {
                    "name": series.name,
                    "grid": series.grid,
                    "colour": series.colour,
                    "y": rounded(series.y),
                    "low": None if series.low is None else rounded(series.low),
                    "high": None if series.high is None else rounded(series.high),
                }
                for series in chart.series
            ],
        },
    )


def x_ends(grids: Mapping[str, Grid]) -> dict[str, float]:
    """The end of each x axis, without axes that a grid does not have or whose values are all zero."""
    ends = {}
    for axis in AXES:
        if all(axis in grid for grid in grids.values()):
            present = [x for grid in grids.values() for x in grid[axis] if x is not None]
            if present and max(present) > 0:
                ends[axis] = max(present)
    return ends


def grid_data(grids: Mapping[str, Grid]) -> dict[str, dict[str, list[Value]]]:
    """The x values for the script."""
    return {name: {axis: rounded(x) for axis, x in grid.items()} for name, grid in grids.items()}


def ticks_of(low: float, high: float, about: int, whole: bool = False) -> list[tuple[float, float]]:
    """Round numbers in a range, each with the step between them; `about`: the wanted number of steps."""
    raw = (high - low) / about
    if not raw > 0 or not math.isfinite(raw):
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1, 2, 5, 10) if whole and power < 10 else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= raw * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, step) for k in range(first, last + 1)]


def labels(low: float, high: float, about: int, whole: bool = False) -> list[tuple[float, str]]:
    """Ticks and their labels."""
    ticks = ticks_of(low, high, about, whole)
    largest = max((abs(tick) for tick, _ in ticks), default=0.0)
    return [(tick, number_format.tick(tick, step, largest)) for tick, step in ticks]


def _range(chart: Chart) -> tuple[Value, Value]:
    rows = [y for series in chart.series for y in (series.y, series.low, series.high) if y is not None]
    present = [y for row in rows for y in row if y is not None]
    if not present:
        return None, None
    if chart.bounds is not None:
        return chart.bounds
    low, high = min(present), max(present)
    if chart.level is not None:
        low, high = min(low, chart.level), max(high, chart.level)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - margin), high + margin


def _summary(chart: Chart) -> str:
    parts = []
    for series in chart.series:
        present = [y for y in series.y if y is not None]
        if present and not series.faint:
            first, last = number_format.number(present[0]), number_format.number(present[-1])
            parts.append(f"{series.name} from {first} to {last}")
    return f"{chart.title}: " + ("; ".join(parts) or "no value") + "."


def rounded(row: Sequence[Value]) -> list[Value]:
    """Values rounded to six digits, which keeps the page small."""
    return [None if y is None else float(f"{y:.6g}") for y in row]


def downsample(rows: Mapping[str, Sequence[Value]]) -> dict[str, list[Value]]:
    """Rows of one length, reduced to at most `POINTS` points by averaging neighbours."""
    length = len(next(iter(rows.values()), ()))
    if length <= POINTS:
        return {key: list(row) for key, row in rows.items()}
    groups = stats.bins(length, POINTS)
    return {key: [stats.bin_mean(row, group) for group in groups] for key, row in rows.items()}
