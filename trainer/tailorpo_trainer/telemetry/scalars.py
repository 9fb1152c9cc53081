"""The numbers of a line of `metrics.jsonl` as curves of a tracker."""

from collections.abc import Iterator, Mapping

from tailorpo_trainer.telemetry.observer import Line

EXCLUDED = ("iteration", "totals", "eta_seconds", "images")
"""Keys of a line whose values are not worth a curve."""

PREFIX = {"iteration": "training", "evaluation": "evaluation", "checkpoint": "checkpoint"}
"""The first part of a curve's name, by the kind of line."""


def scalars(line: Line) -> Iterator[tuple[str, float]]:
    """Every number of a line with its name: `training/loss`, `training/gap_by_step/12`."""
    return _below(PREFIX[line["kind"]], line)


def _below(prefix: str, line: Line) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        match value:
            case _ if key in EXCLUDED:
                continue
            case Mapping():
                yield from _below(f"{prefix}/{key}", value)
            case float() | int():
                yield f"{prefix}/{key}", value
