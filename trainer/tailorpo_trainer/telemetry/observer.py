"""Who looks on while a run goes on: each is told every line of `metrics.jsonl` once it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
"""One line of `metrics.jsonl` (`docs/progress.md`): a figure that was not finite is None."""


@dataclass(frozen=True)
class RunStart:
    """Where an attempt begins.

    Attributes:
        iteration: iterations that are done.
        totals: work that they took, over all attempts.
        lines: written up to there, oldest first.
    """

    attempt: int
    iteration: int
    totals: Mapping[str, float]
    lines: Sequence[Line]


class Observer:
    """Told of a run's lines by their kind; what it has no use for it leaves out.

    A background thread may bring checkpoints; no two calls overlap. An error ends the run.
    """

    def begin(self, beginning: RunStart) -> None: ...
    def iteration(self, line: Line) -> None: ...
    def evaluation(self, line: Line) -> None: ...
    def checkpoint(self, line: Line) -> None: ...
    def alarm(self, line: Line) -> None: ...
    def close(self) -> None: ...

    def observe(self, line: Line) -> None:
        """Take a line of any kind."""
        match line["kind"]:
            case "iteration":
                self.iteration(line)
            case "evaluation":
                self.evaluation(line)
            case "checkpoint":
                self.checkpoint(line)
            case "alarm":
                self.alarm(line)
