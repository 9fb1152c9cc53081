"""TensorBoard's view of a run: the same lines as scalars, and each evaluation's pictures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.results.run_folder import Output
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

LEFT_OUT = ("iteration", "totals", "eta_seconds", "images")
"""Figures of a line that are no curves."""


class TensorBoard(Observer):
    """Event files in OUTPUT/tensorboard; at a resume, what came after the checkpoint is taken back."""

    def __init__(self, root: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise ConfigurationError(
                "--tensorboard: it is not installed: pip install 'tailorpo[tensorboard]'"
            ) from None
        self.output, self._open = Output(root), SummaryWriter
        self._writer: SummaryWriter | None = None

    def begin(self, beginning: RunStart) -> None:
        purged = beginning.iteration + 1 if beginning.iteration else 0
        self._writer = self._open(str(self.output.root / "tensorboard"), purge_step=purged)

    def iteration(self, line: Line) -> None:
        self._scalars("training", line)

    def evaluation(self, line: Line) -> None:
        import numpy
        from PIL import Image

        self._scalars("evaluation", line)
        for number, prompt in enumerate(line["prompts"]):
            with Image.open(self.output.sample(line["iteration"], number)) as picture:
                self._opened.add_image(
                    f"{number:03d}: {prompt}", numpy.asarray(picture), line["iteration"], dataformats="HWC"
                )

    def checkpoint(self, line: Line) -> None:
        self._scalars("checkpoint", line)

    def alarm(self, line: Line) -> None:
        self._opened.add_text(f"alarm/{line['name']}", line["message"], line["iteration"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, prefix: str, line: Line) -> None:
        for tag, value in _figures(prefix, line):
            self._opened.add_scalar(tag, value, line["iteration"])

    @property
    def _opened(self) -> "SummaryWriter":
        assert self._writer is not None, "a line before the beginning"
        return self._writer


def _figures(prefix: str, line: Line) -> Iterator[tuple[str, float]]:
    """Every number of a line with its path: `training/loss`, `training/gap_by_step/12`."""
    for key, value in line.items():
        match value:
            case _ if key in LEFT_OUT:
                continue
            case Mapping():
                yield from _figures(f"{prefix}/{key}", value)
            case float() | int():
                yield f"{prefix}/{key}", value
