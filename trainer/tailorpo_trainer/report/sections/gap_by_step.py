"""The reward gap by denoising step: a heat map over the iterations, and each step's mean."""

from dataclasses import dataclass

from tailorpo_trainer import stats
from tailorpo_trainer.report import number_format
from tailorpo_trainer.report.run_data import Run, numbers
from tailorpo_trainer.stats import Value

COLUMNS, ROWS = 40, 50
"""Largest numbers of columns and rows; beyond these, iterations and steps share a cell."""


@dataclass(frozen=True)
class Cell:
    """level: share of the largest gap, in per cent; None where nothing was trained."""

    label: str
    value: Value
    level: Value


@dataclass(frozen=True)
class Row:
    """One denoising step, or several consecutive ones. bar: share of the largest mean, in per cent."""

    label: str
    mean: Value
    bar: float
    cells: list[Cell]


@dataclass(frozen=True)
class Heat:
    rows: list[Row]
    columns: list[str]
    largest: float

    @property
    def decimals(self) -> int | None:
        """Of the means, which stand below each other."""
        return number_format.common_decimals((row.mean for row in self.rows), 3)


def heat(run: Run) -> Heat | None:
    """The heat map; None for a run without pairs, such as one of `ddpo`."""
    gaps = [{int(k): v for k, v in numbers(line.get("gap_by_step")).items() if k.isdigit()} for line in run.iterations]
    steps = sorted({step for found in gaps for step in found})
    if not steps:
        return None
    columns = stats.bins(len(gaps), COLUMNS)
    names = [_span([int(run.iterations[k]["iteration"]) for k in column]) for column in columns]
    table: list[tuple[str, Value, list[Value]]] = []
    for group in stats.bins(len(steps), ROWS):
        mine = [steps[k] for k in group]

        def over(indices: range, mine: list[int] = mine) -> Value:
            present = [v for k in indices for step in mine if (v := gaps[k].get(step)) is not None]
            return stats.mean(present) if present else None

        table.append((_span(mine), over(range(len(gaps))), [over(column) for column in columns]))
    largest = max((v for _, _, cells in table for v in cells if v is not None), default=0.0)
    widest = max((v for _, v, _ in table if v is not None), default=0.0)
    rows = [
        Row(
            label,
            mean,
            _percent(mean, widest) or 0.0,
            [Cell(name, v, _percent(v, largest)) for name, v in zip(names, cells, strict=True)],
        )
        for label, mean, cells in table
    ]
    return Heat(rows, names, largest)


def _percent(value: Value, largest: float) -> Value:
    if value is None:
        return None
    return round(100 * max(0.0, value) / largest, 1) if largest > 0 else 0.0


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
