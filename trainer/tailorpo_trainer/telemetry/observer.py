"""Observers of a run: each receives every line of `metrics.jsonl` as soon as it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
"""One line of `metrics.jsonl` (`docs/progress.md`). A number that was not finite is None."""


@dataclass(frozen=True)
class RunStart:
    """The state of the run when an attempt starts.

    Attributes:
        iteration: number of iterations that are done.
        totals: the work that they took, over all attempts.
        lines: the lines written up to this iteration, oldest first.
    """

    attempt: int
    iteration: int
    totals: Mapping[str, float]
    lines: Sequence[Line]


class Observer:
    """Base of all observers: one method for each kind of line. A method that is not overridden ignores its lines.

    Calls for checkpoints may come from a background thread, but no two calls overlap. An error ends the run.
    """

    def begin(self, start: RunStart) -> None: ...
    def iteration(self, line: Line) -> None: ...
    def evaluation(self, line: Line) -> None: ...
    def checkpoint(self, line: Line) -> None: ...
    def alarm(self, line: Line) -> None: ...
    def close(self) -> None: ...

    def observe(self, line: Line) -> None:
        """Receive a line of any kind."""
        match line["kind"]:
            case "iteration":
                self.iteration(line)
            case "evaluation":
                self.evaluation(line)
            case "checkpoint":
                self.checkpoint(line)
            case "alarm":
                self.alarm(line)
