"""The report of a run, or a comparison of several, as one self-contained HTML file.

`run_data` reads an output folder, each module of `sections` computes one section, `charts` and `svg_paths` draw,
`run_page` and `compare_page` collect the values of a page, `render` writes it.
"""

from collections.abc import Sequence
from pathlib import Path

from tailorpo_trainer.report import compare_page, render, run_page
from tailorpo_trainer.report.run_data import read

__all__ = ["compare", "write"]


def write(output: Path) -> Path:
    """Write `report.html` into a run's folder, also for a run that is not finished.

    Raises:
        TailorPOError: if it is not the folder of a run, or cannot be written to.
    """
    run = read(output)
    return render.save(render.render("report.html.j2", **run_page.context(run)), run.output.report)


def compare(runs: Sequence[Path], to: Path) -> Path:
    """Write one page that compares two or more runs; `to` is a file, or a folder for `compare.html`.

    Raises:
        TailorPOError: if there are fewer than two, if one is not the folder of a run, or if `to` cannot be written.
    """
    context = compare_page.context([read(folder) for folder in runs])
    return render.save(render.render("compare.html.j2", **context), to / "compare.html" if to.is_dir() else to)
