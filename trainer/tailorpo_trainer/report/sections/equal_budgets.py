"""Runs compared at equal budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tailorpo_trainer import stats
from tailorpo_trainer.report import charts, number_format
from tailorpo_trainer.report.charts import Grid
from tailorpo_trainer.report.run_data import Evaluation, Run
from tailorpo_trainer.report.sections import differences
from tailorpo_trainer.stats import Difference, Value


@dataclass(frozen=True)
class Entry:
    """One run on the page. label: its name, with its folder where names repeat."""

    run: Run
    label: str
    colour: str
    shown: list[Evaluation]
    grid: Grid

    @property
    def first(self) -> Evaluation | None:
        return self.run.evaluations[0] if self.run.evaluations else None

    @property
    def last(self) -> Evaluation | None:
        return self.run.evaluations[-1] if self.run.evaluations else None


def difference_to(
    entry: Entry, mine: Evaluation | None, reference: Entry, theirs: Evaluation | None
) -> tuple[Difference, int] | None:
    """The difference to another run, and the decimals to show.

    Paired if both have the same pictures, otherwise from the means; None if the rewards differ.
    """
    if mine is None or theirs is None or not differences.same_reward(entry.run, reference.run):
        return None
    found = None
    if differences.same_pictures(entry.run, reference.run):
        found = stats.paired(theirs.scores, mine.scores)
    found = found or stats.unpaired(theirs.reward, theirs.error, mine.reward, mine.error, mine.images)
    return None if found is None else (found, number_format.decimals_for((found.high - found.low) / 2, found.mean))


def equal(entries: Sequence[Entry], axes: Sequence[str]) -> list[dict[str, Any]]:
    """For each x axis the largest budget that all runs have spent, and what each had reached within it.

    Figures below each other have the same decimals.
    """
    found: list[dict[str, Any]] = []
    for axis in axes:
        if any(not entry.grid for entry in entries):
            continue
        spent = [max((x for x in entry.grid[axis] if x is not None), default=0.0) for entry in entries]
        budget = min(spent)
        if budget <= 0:
            continue
        at = [_within(entry, axis, budget) for entry in entries]
        cells = [
            (e, None if number == 0 else difference_to(entry, e, entries[0], at[0]))
            for number, (entry, e) in enumerate(zip(entries, at, strict=True))
        ]
        text = {"seconds": number_format.seconds, "flops": number_format.flops}.get(axis, number_format.count)(budget)
        found.append({"axis": charts.AXES[axis], "budget": text, "cells": cells})
    evaluations = [e for budget in found for e, _ in budget["cells"] if e is not None]
    against = [difference for budget in found for _, difference in budget["cells"] if difference is not None]
    decimals = number_format.common_decimals(e.reward for e in evaluations)
    places = max((places for difference, places in against if difference.low < difference.high), default=decimals)
    return [budget | {"decimals": decimals, "difference_decimals": places} for budget in found]


def _within(entry: Entry, axis: str, budget: float) -> Evaluation | None:
    last: Value = None
    found = None
    for x, evaluation in zip(entry.grid[axis], entry.shown, strict=True):
        if x is not None and x <= budget * (1 + 1e-9) and (last is None or x >= last):
            last, found = x, evaluation
    return found
