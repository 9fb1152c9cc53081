"""The report of one run, as values for its template."""

from collections.abc import Mapping
from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report import charts, number_format, render
from tailorpo_trainer.report.run_data import Evaluation, Run
from tailorpo_trainer.report.sections import costs, curves, gap_by_step, pictures, reproduce, tables, verdict
from tailorpo_trainer.report.sections.pictures import Gallery

UNITS = {
    "colourfulness": "8-bit levels",
    "clip-score": "100 × cosine",
    "jpeg-compressibility": "−kB",
    "jpeg-incompressibility": "kB",
}
"""The units of the built-in rewards, whose classes a page does not import."""


def context(run: Run) -> dict[str, Any]:
    """Everything that `report.html.j2` shows."""
    terms = [reward.name for reward in run.job.spec.rewards]
    grids: dict[str, charts.Grid] = {}
    shown: list[Evaluation] = []
    if run.evaluations:
        grids["evaluation"], shown = curves.evaluation_grid(run)
    groups: list[tuple[str, list[charts.Chart]]] = [("Held out", curves.evaluation_charts(shown, terms))]
    if run.iterations:
        grids["training"], y = curves.training_grid(run)
        groups.append(("Training", curves.training_charts(y, run.job.spec.method.name)))
    grids = {name: grid for name, grid in grids.items() if grid}
    changes = verdict.changes(run, terms)
    tiles = len(changes) + 1 + bool(run.totals.get("images"))
    drawn = [
        (title, charts.lay_out([d for chart in some if (d := charts.draw(chart, grids))])) for title, some in groups
    ]
    gallery = pictures.gallery(run)
    ends = charts.x_ends(grids) if grids else {}
    plots = [d for _, some in drawn for d in some]
    return {
        "run": run,
        "formula": verdict.formula(run.job.spec.rewards),
        "state": state(run),
        "verdict": verdict.verdict(run),
        "changes": changes,
        "tiles": [charts.columns(tiles, some) for some in ((6, 5, 4), (4, 3))],
        "diversities": {key.replace("_", " "): what for key, _, what in curves.DIVERSITIES},
        "pairless": curves.is_pairless(run.job.spec.method.name),
        "message": str(run.progress.get("message") or ""),
        "totals": {key: run.totals.get(key) for key in costs.WORK},
        "alarms": [_alarm(line) for line in run.alarms],
        "training_seconds": costs.training_seconds(run),
        "evaluation_seconds": costs.evaluation_seconds(run),
        "gallery": gallery,
        "label_width": charts.label_width(plots),
        "groups": [(title, some) for title, some in drawn if some],
        "axes": [(axis, charts.AXES[axis]) for axis in ends],
        "smoothed": curves.window(min(charts.POINTS, len(run.iterations))),
        "default_axis": next(iter(ends), ""),
        "tables": tables.tables(run, terms),
        "heat": gap_by_step.heat(run),
        "histogram": histogram(run),
        "phases": costs.time_by_phase(run),
        "work": costs.work(run),
        "flops": costs.flops_by_kind(run),
        "facts": reproduce.facts(run),
        "yaml": reproduce.yaml(run.document),
        "data": render.embed(
            {
                "grids": charts.grid_data(grids),
                "ends": ends,
                "charts": {d.chart.key: d.data for d in plots},
                "frames": _frames(gallery),
            }
        ),
    }


def state(run: Run) -> str:
    """The state of the run in a few words."""
    of = run.job.spec.training.iterations
    if run.done >= of:
        text = f"complete, {number_format.plural(of, 'iteration')}"
    else:
        phase = str(run.progress.get("phase") or "interrupted").lower()
        phase = {"starting": "unfinished", "running": "unfinished"}.get(phase, phase)
        text = f"{phase} after {number_format.count(run.done)} of {number_format.plural(of, 'iteration')}"
    return text + (f", {run.attempt} attempts" if run.attempt > 1 else "")


def _alarm(line: Mapping[str, Any]) -> dict[str, str]:
    """An alarm's message: before the colon what is wrong, after it what to do."""
    what, _, how = str(line.get("message") or "").partition(": ")
    return {
        "name": str(line.get("name") or "alarm"),
        "iteration": str(line["iteration"]),
        "what": _capital(what),
        "how": _capital(how),
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def histogram(run: Run) -> dict[str, Any] | None:
    """Scores of the first and the last evaluation in the same bins; heights in per cent of the plot."""
    if not run.evaluations:
        return None
    ends = run.evaluations[:1] + run.evaluations[1:][-1:]
    edges, counts = stats.histogram(*(evaluation.scores for evaluation in ends))
    if not edges:
        return None
    span, top = edges[-1] - edges[0], 1.08 * max(max(row) for row in counts)
    names = ("before", "after")
    return {
        "samples": [
            {
                "name": name,
                "iteration": evaluation.iteration,
                "mean": evaluation.reward,
                "at": None if evaluation.reward is None else 100 * (evaluation.reward - edges[0]) / span,
                "bars": [
                    (100 * k / len(row), 100 / len(row), 100 * n / top, edges[k], edges[k + 1], n)
                    for k, n in enumerate(row)
                ],
            }
            for name, evaluation, row in zip(names, ends, counts, strict=False)
        ],
        "x": [(100 * (tick - edges[0]) / span, text) for tick, text in charts.labels(edges[0], edges[-1], 6)],
        "y": [(100 * tick / top, text) for tick, text in charts.labels(0, top, 4, whole=True)],
        "total": len(ends[0].scores),
        "axis": _axis(run),
    }


def _axis(run: Run) -> str:
    """What the axis of rewards shows: the only reward in its unit, or the weighted sum."""
    rewards = run.job.spec.rewards
    unit = UNITS.get(rewards[0].name)
    if len(rewards) > 1 or rewards[0].weight != 1:
        return f"reward: {verdict.formula(rewards)}"
    return f"{rewards[0].name}, in {unit}" if unit else rewards[0].name


def _frames(gallery: Gallery | None) -> dict[str, Any] | None:
    """Pictures between the first and the last evaluation; the page has those two already."""
    if gallery is None or len(gallery.frames) < 2:
        return None
    inner = [
        [picture.uri for picture in frame] if 0 < k < len(gallery.frames) - 1 else None
        for k, frame in enumerate(gallery.frames)
    ]
    return {
        "iterations": gallery.iterations,
        "decimals": gallery.decimals,
        "uris": inner,
        "scores": [charts.rounded([picture.score for picture in frame]) for frame in gallery.frames],
    }
