"""`python -m benchmarks.methods run` trains and stores the figures; `page` writes the page and its pictures."""

import argparse
import os
from pathlib import Path

BUILD = Path("build/benchmarks/methods")
"""Folder of finished trials, which is not committed."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--folder", type=Path, default=BUILD, help="where finished trials are kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="train what is not trained yet: about an hour on one core")
    commands.add_parser("page", help="write results, page and pictures; without trials in --folder, from the results")
    given = parser.parse_args()
    if given.command == "run":
        run(given.folder)
    else:
        page(given.folder)


def run(folder: Path) -> None:
    import torch

    from benchmarks.methods import sweep

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sweep.run(folder, report=lambda line: print(line, flush=True))


def page(folder: Path) -> None:
    from benchmarks.methods import analysis, files, page, picture_grid, plot

    results = analysis.whole_seeds(files.read(folder / "trials.jsonl") or files.read(files.RESULTS))
    files.write(results, files.RESULTS)
    files.PAGE.write_text(page.markdown(results), encoding="utf-8")
    plot.draw(results, files.PLOT)
    if (folder / "pictures").is_dir():
        picture_grid.draw(folder / "pictures", files.PICTURES)


if __name__ == "__main__":
    main()
