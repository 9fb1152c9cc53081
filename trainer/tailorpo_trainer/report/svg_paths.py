"""Curves as SVG paths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tailorpo_trainer.stats import Value

WIDTH, HEIGHT = 2000, 1000
"""Size of the view box of each SVG; on the page it is stretched over its plot."""


@dataclass(frozen=True)
class Series:
    """One curve. colour: name of a CSS class; low and high: ends of a band; faint: drawn thin, below the others."""

    name: str
    grid: str
    y: Sequence[Value]
    colour: str = "c0"
    low: Sequence[Value] | None = None
    high: Sequence[Value] | None = None
    faint: bool = False


@dataclass(frozen=True)
class SeriesPaths:
    """One series on one x axis, as SVG paths."""

    colour: str
    line: str
    band: str
    dots: str
    faint: bool


def series_paths(series: Series, x: Sequence[Value], end: float, bottom: float, top: float) -> SeriesPaths:
    """Draw one series over x in [0, end] and y in [bottom, top]; missing values leave a gap.

    Points without neighbours and points of short series are dots: lines of length zero with round ends.
    """

    def at(k: int, y: float) -> str:
        left = x[k]
        assert left is not None
        return f"{round(WIDTH * left / end)} {round(HEIGHT * (top - y) / (top - bottom))}"

    def runs(rows: Sequence[Sequence[Value]]) -> Iterator[list[int]]:
        """Ranges of consecutive indices without a missing value."""
        run: list[int] = []
        for k in range(len(series.y)):
            if x[k] is None or any(row[k] is None for row in rows):
                if run:
                    yield run
                run = []
            else:
                run.append(k)
        if run:
            yield run

    lines, dots, bands = [], [], []
    for run in runs([series.y]):
        points = [at(k, series.y[k] or 0.0) for k in run]
        lines.append("M" + "L".join(points) if len(points) > 1 else "")
        if not series.faint and (len(series.y) <= 40 or len(points) == 1):
            dots += [f"M{point}h0" for point in points]
    low, high = series.low, series.high
    if low is not None and high is not None:
        for run in runs([low, high]):
            present = [at(k, high[k] or 0.0) for k in run] + [at(k, low[k] or 0.0) for k in reversed(run)]
            bands.append("M" + "L".join(present) + "Z")
    return SeriesPaths(series.colour, "".join(lines), "".join(bands), "".join(dots), series.faint)
