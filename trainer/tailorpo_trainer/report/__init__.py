"""What a run did, as one self-contained HTML file to look at, to keep and to send.

`reading` takes an output folder as it is, `measures` computes, `verdict`, `curves`, `gaps`, `costs`, `pictures` and
`reproduce` say one thing each, `charts` draws, `single` and `comparison` lay out, `page` writes.
"""

from collections.abc import Sequence
from pathlib import Path

from tailorpo_trainer.report import compare_page, render, run_page
from tailorpo_trainer.report.run_data import read

__all__ = ["compare", "write"]


def write(output: Path) -> Path:
    """Write `report.html` into a run's folder, however far the run came.

    Raises:
        TailorPOError: if it is no run's folder, or cannot be written to.
    """
    run = read(output)
    return render.save(render.render("report.html.j2", **run_page.context(run)), run.output.report)


def compare(runs: Sequence[Path], to: Path) -> Path:
    """Write one page that sets two or more runs side by side; `to` is a file, or a folder to put `compare.html` into.

    Raises:
        TailorPOError: if there are fewer than two, if one is no run's folder, or if `to` cannot be written.
    """
    context = compare_page.context([read(folder) for folder in runs])
    return render.save(render.render("compare.html.j2", **context), to / "compare.html" if to.is_dir() else to)
