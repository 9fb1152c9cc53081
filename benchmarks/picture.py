"""The README's picture, from the samples of a run: `python -m benchmarks.picture RUN PNG`.

The upper row is from the first evaluation, the lower from the last; each column has one prompt and noise. No selection.
"""

import sys
from pathlib import Path

from PIL import Image

from tailorpo_trainer.results.run_folder import RunFolder

COLUMNS, SIDE, GAP = 12, 96, 4


def before_and_after(run: Path, columns: int = COLUMNS) -> Image.Image:
    """Two rows of the first `columns` pictures of a run's first and last evaluation."""
    output = RunFolder(run)
    measured = [line["iteration"] for line in output.read_metrics() if line["kind"] == "evaluation"]
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
    for row, iteration in enumerate((measured[0], measured[-1])):
        for column in range(columns):
            picture = Image.open(output.sample(iteration, column)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


if __name__ == "__main__":
    before_and_after(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
