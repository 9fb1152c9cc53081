"""One function for each kind of panel."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tools.panels import frames, units
from tools.panels.frames import Asked, Line
from tools.panels.style import Theme, by_name, colours
from tools.panels.variables import Fields, Window

if TYPE_CHECKING:
    from tools.panels.draw import Box

LEFT, BOTTOM, RIGHT, TOP = 0.75, 0.58, 0.15, 0.4
LEGEND_ROWS = 2


def draw(box: "Box", panel: Fields, answers: list[Asked], window: Window, theme: Theme) -> None:
    """Draws what a panel shows, or that there is no data."""
    lines = frames.lines(panel, answers)
    if not any(line.points for line in lines):
        text = panel["fieldConfig"]["defaults"].get("noValue", "No data")
        big = panel["type"] == "stat" and len(text) < 4
        box.write(0.5, 0.42, text, theme.faint, size=26 if big else 10, ha="center", va="center")
        return
    kinds: dict[str, Callable[[Box, Fields, list[Line], Window, Theme], None]] = {
        "timeseries": _timeseries,
        "stat": _stat,
        "heatmap": _heatmap,
        "state-timeline": _states,
    }
    if panel["type"] in ("table", "xychart"):
        (_table if panel["type"] == "table" else _xy)(box, panel, frames.table(panel, answers), theme)
    else:
        kinds[panel["type"]](box, panel, lines, window, theme)


def _timeseries(box: "Box", panel: Fields, lines: list[Line], window: Window, theme: Theme) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    step, _ = window.steps(panel)
    axes = _time_axes(box, window, theme)
    shown = dict[str, str]()
    if custom.get("stacking", {}).get("mode") == "normal":
        shown = _stacked(axes, lines)
    else:
        chosen = colours([line.name for line in lines], defaults["color"]["mode"])
        for line, colour in zip(lines, chosen, strict=True):
            style = _overrides(panel, line.letter)
            times, values = with_gaps(line.points, step)
            dashed = style.get("custom.lineStyle", {}).get("fill") == "dash"
            width = float(style.get("custom.lineWidth", custom.get("lineWidth", 1)))
            axes.plot(
                times,
                values,
                color=colour,
                linewidth=0.8 * width,
                linestyle="--" if dashed else "-",
                alpha=1 if width > 1 else 0.65,
                marker="." if sum(not math.isnan(value) for value in values) == 1 else None,
            )
            if not style.get("custom.hideFrom", {}).get("legend"):
                shown[line.name] = colour
    _limits(axes, lines, defaults)
    _thresholds(axes, defaults, custom, theme)
    _unit_axis(axes, defaults)
    axes.set_ylabel(custom.get("axisLabel", ""), color=theme.faint, size=8)
    _legend(box, shown, theme)


def _stacked(axes: Any, lines: list[Line]) -> dict[str, str]:
    names = sorted({line.name for line in lines})
    times = sorted({at for line in lines for at, _ in line.points})
    values = {name: dict[float, float]() for name in names}
    for line in lines:
        values[line.name].update(line.points)
    table = [[values[name].get(at, 0.0) for at in times] for name in names]
    shades = colours(names, "palette-classic")
    axes.stackplot([datetime.fromtimestamp(at) for at in times], table, colors=[to_rgba(each, 0.55) for each in shades])
    return dict(zip(names, shades, strict=True))


def _stat(box: "Box", panel: Fields, lines: list[Line], window: Window, theme: Theme) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    count = len(lines)
    texts = [units.text(line.last, defaults["unit"], defaults.get("decimals")) for line in lines]
    place = 72 * box.width / count  # points
    size = min(28, place / (0.85 * max(map(len, texts))))
    for index, (line, text) in enumerate(zip(lines, texts, strict=True)):
        colour = theme.colour(_step_colour(defaults["thresholds"]["steps"], line.last))
        x = (index + 0.5) / count
        box.write(x, 0.42, text, colour, size=size, ha="center", va="center")
        if count > 1:
            small = min(9, place / (0.65 * len(line.name)))
            box.write(x, 0.12, line.name, theme.faint, size=small, ha="center", va="center")


def _heatmap(box: "Box", panel: Fields, lines: list[Line], window: Window, theme: Theme) -> None:
    options = panel["options"]
    step, _ = window.steps(panel)
    lines = _rows(panel, lines)
    times = np.arange(window.start, window.end + step, step)
    grid = np.full((len(lines), len(times)), np.nan)
    for row, line in enumerate(lines):
        for at, value in line.points:
            if value > options["filterValues"].get("le", 1e-9):
                grid[row, min(len(times) - 1, round((at - window.start) / step))] = value
    axes = _time_axes(box, window, theme, right=0.7, grid=False)
    edges = [datetime.fromtimestamp(each) for each in [*(times - step / 2), times[-1] + step / 2]]
    shades = options["color"]
    image = axes.pcolormesh(
        edges, range(len(lines) + 1), grid, cmap=shades["scheme"], vmin=shades.get("min"), vmax=shades.get("max")
    )
    axes.set_yticks([row + 0.5 for row in range(len(lines))], [line.name for line in lines])
    axes.set_ylabel(options["yAxis"].get("axisLabel", ""), color=theme.faint, size=8)
    place = axes.get_position()
    scale = box.figure.add_axes((place.x1 + 0.006, place.y0, 0.006, place.height))
    unit = options["cellValues"]["unit"]
    bar = box.figure.colorbar(image, cax=scale, format=FuncFormatter(lambda value, _: units.text(value, unit)))
    bar.outline.set_visible(False)
    scale.tick_params(colors=theme.faint, labelsize=7, length=2)


def _rows(panel: Fields, lines: list[Line]) -> list[Line]:
    """The series of a heat map; a histogram's buckets less those below them."""
    if panel["targets"][0]["format"] != "heatmap":
        return lines
    bounds = sorted(lines, key=lambda line: float(line.labels["le"]))
    below = [Line("", "", {}, []), *bounds]
    return [_less(upper, lower) for lower, upper in pairwise(below)]


def _less(upper: Line, lower: Line) -> Line:
    known = dict(lower.points)
    return Line(upper.letter, upper.name, upper.labels, [(at, value - known.get(at, 0)) for at, value in upper.points])


def _states(box: "Box", panel: Fields, lines: list[Line], window: Window, theme: Theme) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    mapped = {name: found for each in defaults["mappings"] for name, found in each["options"].items()}
    step, _ = window.steps(panel)
    axes = _time_axes(box, window, theme, left=0.25 + 0.065 * max(len(line.name) for line in lines), grid=False)
    for row, line in enumerate(reversed(lines)):
        for begin, end, value in _spans(line.points, step):
            found = mapped.get(f"{value:g}")
            colour = theme.colour(found["color"] if found else "text")
            left = datetime.fromtimestamp(begin)
            axes.barh(row, datetime.fromtimestamp(end) - left, left=left, height=0.75, color=colour, linewidth=0)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    _legend(box, {each["text"]: theme.colour(each["color"]) for each in mapped.values()}, theme)


def _spans(points: list[tuple[float, float]], step: float) -> list[tuple[float, float, float]]:
    """Begin, end and value of each time in which the value stays the same."""
    spans: list[tuple[float, float, float]] = []
    for at, value in points:
        if spans and spans[-1][2] == value and at - spans[-1][1] < step / 2:
            spans[-1] = (spans[-1][0], at + step, value)
        else:
            spans.append((at, at + step, value))
    return spans


def _xy(box: "Box", panel: Fields, rows: Sequence[Fields], theme: Theme) -> None:
    (series,) = panel["options"]["series"]
    x, y = (series[axis]["matcher"]["options"] for axis in "xy")
    defaults = panel["fieldConfig"]["defaults"]
    field = next(each["options"]["fields"][0] for each in panel["transformations"] if each["id"] == "partitionByValues")
    axes = _axes(box, theme)
    shown = dict[str, str]()
    for name in sorted({row.get(field, "") for row in rows}):
        points = sorted({(row[x], row[y]) for row in rows if row.get(field, "") == name and x in row and y in row})
        shown[name] = by_name(name)
        axes.plot(*zip(*points, strict=True), color=shown[name], linewidth=1.2, marker=".", markersize=4)
    axes.set_xlabel(x, color=theme.faint, size=8, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _unit_axis(axes, defaults)
    axes.set_ylabel(defaults["custom"].get("axisLabel", ""), color=theme.faint, size=8)
    _legend(box, shown, theme)


def _table(box: "Box", panel: Fields, rows: Sequence[Fields], theme: Theme) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    organized = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    places = {organized["renameByName"][name]: place for name, place in organized["indexByName"].items()}
    columns.sort(key=lambda name: int(places[name]))
    overrides = {each["matcher"]["options"]: each["properties"] for each in panel["fieldConfig"]["overrides"]}
    text = [[_cell(row.get(name), panel, overrides.get(name, [])) for name in columns] for row in rows]
    widths = [max(len(str(cells)) for cells in column) + 2 for column in zip(columns, *text, strict=True)]
    total, top = sum(widths), box.height - 0.55
    x = 0.1
    for index, name in enumerate(columns):
        box.write(x, top, name, theme.text, inches=True, size=9, weight="bold")
        linked = any(each["id"] == "links" for each in overrides.get(name, []))
        for number, row in enumerate(text):
            y = top - 0.27 * (number + 1)
            if y > 0.05:
                box.write(x, y, row[index], theme.colour("blue") if linked else theme.text, inches=True, size=9)
        x += (box.width - 0.2) * widths[index] / total


def _cell(value: Any, panel: Fields, properties: list[Fields]) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    unit = next(
        (each["value"] for each in properties if each["id"] == "unit"), panel["fieldConfig"]["defaults"]["unit"]
    )
    return units.text(value, unit)


def _axes(box: "Box", theme: Theme, left: float = LEFT, right: float = RIGHT, grid: bool = True) -> Any:
    axes = box.axes(left, BOTTOM, right, TOP)
    axes.set_facecolor(theme.panel)
    axes.tick_params(colors=theme.faint, labelsize=8, length=2)
    for side in axes.spines.values():
        side.set_color(theme.border)
        side.set_linewidth(0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color=theme.border, linewidth=0.5)
        axes.set_axisbelow(True)
    return axes


def _time_axes(
    box: "Box", window: Window, theme: Theme, left: float = LEFT, right: float = RIGHT, grid: bool = True
) -> Any:
    axes = _axes(box, theme, left, right, grid)
    axes.set_xlim(datetime.fromtimestamp(window.start), datetime.fromtimestamp(window.end))
    locator = AutoDateLocator(minticks=3, maxticks=max(5, int(box.width)))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    return axes


def with_gaps(points: list[tuple[float, float]], step: float) -> tuple[list[datetime], list[float]]:
    """The points, with NaN where steps are missing: no line over a gap."""
    times, values, last = list[datetime](), list[float](), None
    for at, value in points:
        if last is not None and at - last > 1.5 * step:
            times.append(datetime.fromtimestamp(last + step / 2))
            values.append(math.nan)
        times.append(datetime.fromtimestamp(at))
        values.append(value)
        last = at
    return times, values


def _overrides(panel: Fields, letter: str) -> Fields:
    """The properties that overrides give to the series of a query."""
    return {
        each["id"]: each["value"]
        for override in panel["fieldConfig"]["overrides"]
        if override["matcher"] == {"id": "byFrameRefID", "options": letter}
        for each in override["properties"]
    }


def _limits(axes: Any, lines: list[Line], defaults: Fields) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(defaults.get("min", low), defaults.get("max", high))


def _thresholds(axes: Any, defaults: Fields, custom: Fields, theme: Theme) -> None:
    if custom.get("thresholdsStyle", {}).get("mode") != "dashed":
        return
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None:
            axes.axhline(step["value"], color=theme.colour(step["color"]), linewidth=1, linestyle=(0, (6, 4)))


def _unit_axis(axes: Any, defaults: Fields) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(axes, value, defaults["unit"])))


def tick_label(axes: Any, value: float, unit: str) -> str:
    """A label of an axis, with as many digits as tell its ticks apart."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    for decimals in (None, 3, 4, 5, 6):
        if len({units.text(tick, unit, decimals) for tick in ticks}) == len(ticks):
            break
    return units.text(value, unit, decimals)


def _step_colour(steps: list[Fields], value: float) -> str:
    found = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return str(found[-1])


def _legend(box: "Box", shown: dict[str, str], theme: Theme) -> None:
    """Names with their colours, in as many lines as there is place for."""
    x, y = 0.12, 0.24
    for name, colour in shown.items():
        width = 0.34 + 0.075 * len(name)
        if x + width > box.width and x > 0.12:
            x, y = 0.12, y - 0.16
            if y < 0.24 - 0.16 * (LEGEND_ROWS - 1):
                return
        box.write(x, y, "▬", colour, inches=True, size=10, va="center")
        box.write(x + 0.2, y, name, theme.text, inches=True, size=8.5, va="center")
        x += width
