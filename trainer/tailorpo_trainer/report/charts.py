"""Line charts, drawn once for each x axis; the script only adds the values that hovering shows.

The SVG is stretched over the plot (`preserveAspectRatio="none"`, line widths that do not scale) and all text is HTML
outside of it, so that a chart fits any width and its letters keep their size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

LABEL_WIDTH, LETTER_WIDTH = 42, 7.7
"""Least width of a y axis' labels in pixels, and that of one of their letters in a wide typeface."""

NOISE = 1e-5
"""A range below this share of its values is rounding noise, and is drawn no larger."""

Grid = Mapping[str, Sequence[Value]]
"""The x values of several series, by axis."""


@dataclass(frozen=True)
class Chart:
    """Curves over common axes.

    level, level_name: a horizontal line for reference, and its name in the legend. scale: the size of one unit where
    values may be close to 0, so that their rounding noise is not drawn large.
    """

    key: str
    title: str
    series: Sequence[Series]
    note: str = ""
    level: float | None = None
    level_name: str = ""
    bounds: tuple[float, float] | None = None
    scale: float = 0.0
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
    """A chart as the template needs it; `data` is for the script. `lay_out` sets the numbers of columns."""

    chart: Chart
    variants: list[Variant]
    ticks: list[tuple[float, str]]
    level: float | None
    summary: str
    data: dict[str, Any]
    columns: int = 0
    narrow_columns: int = 0


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
        ticks = [(100 * tick / end, text) for tick, text in x_labels(end, axis in WHOLE)]
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
    steps = [factor * power for factor in factors if factor * power >= raw * 0.999]
    steps.insert(0, max(f * power for f in (*factors, factors[-2] / 10) if f * power < steps[0]))
    for step in (max(1.0, one) if whole else one for one in reversed(steps[:2])):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 2:  # else finer ones, since two labels do not show how far apart values are
            break
    return [(k * step, step) for k in range(first, last + 1)]


def labels(low: float, high: float, about: int, whole: bool = False) -> list[tuple[float, str]]:
    """Ticks and their labels."""
    ticks = ticks_of(low, high, about, whole)
    largest = max((abs(tick) for tick, _ in ticks), default=0.0)
    return [(tick, number_format.tick(tick, step, largest)) for tick, step in ticks]


def x_labels(end: float, whole: bool = False) -> list[tuple[float, str]]:
    """Ticks of an x axis and their labels, from 0 to its end."""
    ticks = ticks_of(0, end, 5, whole)
    if not ticks:
        return []
    step = ticks[0][1]
    if whole and end <= 30 and end % step:
        step = next((end / parts for parts in (4, 5, 3) if end % parts == 0), step)
        ticks = [(k * step, step) for k in range(math.floor(end / step) + 1)]
    inner = [(tick, number_format.tick(tick, step, end)) for tick, _ in ticks if tick < 0.86 * end]
    digits = 10.0 ** (math.floor(math.log10(end)) - 2)
    exact = step if abs(end / step - round(end / step)) < 1e-9 else max(1.0, digits) if whole else digits
    return [*inner, (end, number_format.tick(end, exact, end))]


def label_width(drawn: Sequence[DrawnChart]) -> int:
    """Pixels that the labels of all y axes need, so that the plots of a page are aligned."""
    longest = max((len(text) for chart in drawn for _, text in chart.ticks), default=0)
    return max(LABEL_WIDTH, math.ceil(longest * LETTER_WIDTH))


def lay_out(drawn: Sequence[DrawnChart]) -> list[DrawnChart]:
    """The charts with the columns (of 6) that each takes on a wide page and on a narrow one, so that no row has a hole.

    Full ones have a row of their own, wide ones half of one, the others a third.
    """
    full = [chart for chart in drawn if chart.chart.full]
    wide = [chart for chart in drawn if chart.chart.wide and not chart.chart.full]
    small = [chart for chart in drawn if not chart.chart.wide and not chart.chart.full]
    if len(wide) == 1 and len(small) == 1:
        wide, small = wide + small, []
    spans = [6] * len(full) + _row_spans(len(wide), 2) + _row_spans(len(small), 3)
    ordered = [*full, *wide, *small]
    narrow = [6] * (len(full) + len(wide)) + _row_spans(len(small), 2)
    return [
        replace(chart, columns=span, narrow_columns=other)
        for chart, span, other in zip(ordered, spans, narrow, strict=True)
    ]


def columns(count: int, choices: Sequence[int]) -> tuple[int, int]:
    """Columns of a grid of `count` cards that leave the fewest places empty, and how many the last card takes."""
    found = min(count, min(choices, key=lambda columns: -count % columns))
    return found, 1 + -count % found


def _row_spans(count: int, most: int) -> list[int]:
    """Columns of 6 for each of `count` charts, in rows of at most `most` that are as equal as can be."""
    rows = -(-count // most)
    return [6 // len(row) for row in reversed(stats.bins(count, rows)) for _ in row]


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
    size = max(abs(low), abs(high), chart.scale)
    if low < high and high - low < NOISE * size:
        middle = (low + high) / 2
        low, high = middle - NOISE * size / 2, middle + NOISE * size / 2
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
