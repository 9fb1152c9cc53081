"""The page that compares runs, as values for its template."""

from collections.abc import Callable, Sequence
from typing import Any

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.report import charts, number_format, render
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
    drawn = charts.lay_out([d for chart in _charts(measured) if (d := charts.draw(chart, grids))])
    ends = charts.x_ends(grids) if grids else {}
    axes = sorted(ends, key=lambda axis: axis == "iterations")  # an iteration is not a budget: offered last
    return {
        "entries": entries,
        "warnings": differences.warnings(runs, [entry.label for entry in entries]),
        "charts": drawn,
        "label_width": charts.label_width(drawn),
        "axes": [(axis, charts.AXES[axis]) for axis in axes],
        "default_axis": axes[0] if axes else "",
        "same_reward": all(differences.same_reward(runs[0], run) for run in runs[1:]),
        "table": _rows(entries),
        "watched": _watched(entries),
        "watched_decimals": {
            name: number_format.common_decimals(
                (entry.last.rewards.get(name) for entry in entries if entry.last is not None), 3
            )
            for name in _watched(entries)
        },
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
    ]
    for key, title, what in curves.DIVERSITIES:

        def diversity(entry: Entry, grid: str, key: str = key) -> Series:
            return curves.diversity_series(entry.shown, key, grid, entry.label, entry.colour)

        found.append(overlay(key, title, f"{what} of pictures of one prompt; 95 % interval", diversity, watched=True))
    for number, name in enumerate(_watched(entries)):

        def watched(entry: Entry, grid: str, name: str = name) -> Series:
            return Series(entry.label, grid, [e.rewards.get(name) for e in entry.shown], entry.colour)

        found.append(overlay(f"watched{number}", name, "watched, not maximised", watched, watched=True))
    return found


def _change(entry: Entry, grid: str) -> Series:
    return curves.change_series(entry.shown, grid, entry.label, entry.colour)


def _watched(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for e in entry.shown for name in e.watched))


def _rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The rows of the table of results; figures below each other have the same decimals if they may be compared."""
    rows = [_row(entry, entries[0]) for entry in entries]
    for row in rows:
        run = row["entry"].run
        alike = [other for other in rows if differences.same_reward(run, other["entry"].run)]
        row["decimals"] = max(other["own_decimals"] for other in alike)
    return rows


def _row(entry: Entry, reference: Entry) -> dict[str, Any]:
    run, last = entry.run, entry.last
    gain, decimals = None, 0
    if last is not None:
        decimals = number_format.decimals_for(None if last.error is None else 2 * last.error, last.reward)
    if entry.first is not None and last is not None and entry.first is not last:
        gain = verdict.change_of_reward(entry.first, last)
        decimals = gain.decimals
    difference = None if entry is reference else equal_budgets.difference_to(entry, last, reference, reference.last)
    return {
        "entry": entry,
        "iterations": run.done,
        "reward": None if last is None else last.reward,
        "own_decimals": decimals,
        "gain": None if gain is None else gain.difference,
        "no_gain": "no evaluation" if last is None else "one evaluation" if gain is None else "not known",
        "difference": None if difference is None else difference[0],
        "no_difference": _why_no_difference(entry, reference),
        "diversity": None if last is None else last.diversity,
        "watched": {} if last is None else last.rewards,
        "totals": {key: run.totals.get(key) for key in costs.WORK},
        "seconds": costs.training_seconds(run),
        "flops": costs.flops_of(run.totals, run.cost),
    }


def _why_no_difference(entry: Entry, reference: Entry) -> str:
    if entry is reference:
        return "itself"
    if not differences.same_reward(entry.run, reference.run):
        return "another reward"
    return "no evaluation" if entry.last is None or reference.last is None else "not known"


def _pictures(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """One noise in each row: the first evaluation of the first run, then the last one of each run."""
    columns, names, prompts = [], [], []
    reference = entries[0]
    same = all(differences.same_pictures(reference.run, entry.run) for entry in entries[1:])
    if reference.first is not None and reference.first is not reference.last:
        columns.append(pictures.frame(reference.run, reference.first, ROWS))
        names.append(("before" if same else f"{reference.label}, before", "before"))
        prompts.append(reference.first.prompts)
    for entry in entries:
        columns.append([] if entry.last is None else pictures.frame(entry.run, entry.last, ROWS))
        names.append((entry.label, entry.colour))
        prompts.append([] if entry.last is None else entry.last.prompts)
    missing = pictures.Picture("", None)
    filled = [column + [missing] * (ROWS - len(column)) for column in columns]
    # Only scores of one reward are read beside each other.
    alike = all(differences.same_reward(reference.run, entry.run) for entry in entries[1:])
    scores = [[picture.score for picture in column] for column in columns]
    every = [score for mine in scores for score in mine]
    decimals = [number_format.common_decimals(every if alike else mine) for mine in scores]
    rows = []
    for number, found in enumerate(zip(*filled, strict=True)):
        if any(picture.uri for picture in found):
            texts = [mine[number] if number < len(mine) else "" for mine in prompts]
            shown = {text for text, picture in zip(texts, found, strict=True) if picture.uri}
            # Pictures of different prompts have no title in common.
            rows.append((shown.pop() if len(shown) == 1 else "", list(zip(found, texts, strict=True))))
    if not rows:
        return None
    return {
        "names": names,
        "rows": rows,
        "pixelated": max(max(p.width, p.height) for column in filled for p in column) <= 128,
        "same": same,
        "decimals": decimals,
        "narrow": charts.columns(len(names), (4, 3, 2))[0],
    }
