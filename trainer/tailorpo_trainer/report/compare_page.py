"""The page that compares runs, as values for its template."""

from collections.abc import Callable, Sequence
from typing import Any

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.report import charts, render
from tailorpo_trainer.report.charts import Chart, Grid
from tailorpo_trainer.report.run_data import Evaluation, Run
from tailorpo_trainer.report.sections import costs, curves, differences, equal_budgets, pictures, verdict
from tailorpo_trainer.report.sections.equal_budgets import Entry
from tailorpo_trainer.report.svg_paths import Series

ROWS = 12
"""How many noises have their pictures shown."""


def context(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that `compare.html.j2` shows. Raises `ConfigurationError` for fewer than two runs."""
    if len(runs) < 2:
        raise ConfigurationError("a comparison needs at least two output folders of runs")
    entries = _entries(runs)
    measured = [entry for entry in entries if entry.grid]
    grids = {entry.colour + entry.label: entry.grid for entry in measured}
    drawn = [d for chart in _charts(measured) if (d := charts.draw(chart, grids))]
    ends = charts.x_ends(grids) if grids else {}
    axes = sorted(ends, key=lambda axis: axis == "iterations")  # an iteration is not a budget: offered last
    return {
        "entries": entries,
        "warnings": differences.warnings(runs),
        "charts": drawn,
        "axes": [(axis, charts.AXES[axis]) for axis in axes],
        "default_axis": axes[0] if axes else "",
        "table": [_row(entry, entries[0]) for entry in entries],
        "watched": _watched(entries),
        "budgets": equal_budgets.equal(entries, [axis for axis in axes if axis != "iterations"]),
        "pictures": _pictures(entries),
        "differences": differences.fields(runs),
        "data": render.embed(
            {
                "grids": charts.grid_data(grids),
                "ends": ends,
                "charts": {d.chart.key: d.data for d in drawn},
                "frames": None,
            }
        ),
    }


def _entries(runs: Sequence[Run]) -> list[Entry]:
    names = [run.name for run in runs]
    entries: list[Entry] = []
    for number, run in enumerate(runs):
        folder = run.output.root
        label = run.name if names.count(run.name) == 1 else f"{run.name} ({folder.resolve().name})"
        if label in (entry.label for entry in entries):
            label = f"{label} #{number + 1}"
        colour = f"c{number % 7}" + (" dashed" if number >= 7 else "")
        grid: Grid = {}
        shown: list[Evaluation] = []
        if run.evaluations:
            grid, shown = curves.evaluation_grid(run)
        entries.append(Entry(run, label, colour, shown, grid))
    return entries


def _charts(entries: Sequence[Entry]) -> list[Chart]:
    def overlay(key: str, title: str, note: str, one: Callable[[Entry, str], Series], **more: Any) -> Chart:
        series = [one(entry, entry.colour + entry.label) for entry in entries]
        return Chart(key, title, series, note, **more)

    found = [
        overlay(
            "reward",
            "Held-out reward",
            "mean and its 95 % interval",
            lambda entry, grid: curves.reward_series(entry.shown, grid, entry.label, entry.colour),
            full=True,
        ),
        overlay(
            "change",
            "Change since the first evaluation",
            "paired by picture; 95 % interval",
            _change,
            level=0,
        ),
        overlay(
            "diversity",
            "Diversity",
            "RMS difference of pictures of one prompt",
            lambda entry, grid: Series(entry.label, grid, [e.diversity for e in entry.shown], entry.colour),
            watched=True,
        ),
    ]
    for number, name in enumerate(_watched(entries)):

        def watched(entry: Entry, grid: str, name: str = name) -> Series:
            return Series(entry.label, grid, [e.rewards.get(name) for e in entry.shown], entry.colour)

        found.append(overlay(f"watched{number}", name, "watched, not maximised", watched, watched=True))
    return found


def _change(entry: Entry, grid: str) -> Series:
    return curves.change_series(entry.shown, grid, entry.label, entry.colour)


def _watched(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for e in entry.shown for name in e.watched))


def _row(entry: Entry, reference: Entry) -> dict[str, Any]:
    run, last = entry.run, entry.last
    gain = None
    if entry.first is not None and last is not None and entry.first is not last:
        gain = verdict.change_of_reward(entry.first, last)
    return {
        "entry": entry,
        "iterations": run.done,
        "reward": None if last is None else last.reward,
        "gain": gain,
        "difference": None
        if entry is reference
        else equal_budgets.difference_to(entry, last, reference, reference.last),
        "diversity": None if last is None else last.diversity,
        "watched": {} if last is None else last.rewards,
        "totals": {key: run.totals.get(key) for key in costs.WORK},
        "seconds": costs.training_seconds(run),
        "flops": costs.flops_of(run.totals, run.cost),
    }


def _pictures(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """One noise in each row: the first evaluation of the first run, then the last one of each run."""
    columns, names = [], []
    first = entries[0].first
    if first is not None and first is not entries[0].last:
        columns.append(pictures.frame(entries[0].run, first, ROWS))
        names.append(("before", "before"))
    for entry in entries:
        columns.append([] if entry.last is None else pictures.frame(entry.run, entry.last, ROWS))
        names.append((entry.label, entry.colour))
    missing = pictures.Picture("", None)
    filled = [column + [missing] * (ROWS - len(column)) for column in columns]
    rows = [row for row in enumerate(zip(*filled, strict=True)) if any(picture.uri for picture in row[1])]
    if not rows:
        return None
    prompts = next((entry.last.prompts for entry in entries if entry.last and entry.last.prompts), [])
    largest = max(max(p.width, p.height) for column in filled for p in column)
    return {
        "names": names,
        "rows": [(prompts[n] if n < len(prompts) else "", row) for n, row in rows],
        "pixelated": largest <= 128,
        "same": all(differences.same_pictures(entries[0].run, entry.run) for entry in entries[1:]),
    }
