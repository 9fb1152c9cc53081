"""Event files for TensorBoard: the lines of `metrics.jsonl` as scalars, and the pictures of each evaluation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

EXCLUDED = ("iteration", "totals", "eta_seconds", "images")
"""Keys of a line whose values are not worth a curve."""


class TensorBoard(Observer):
    """Writes event files to OUTPUT/tensorboard. After a resume, TensorBoard hides what came after the checkpoint."""

    def __init__(self, root: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise ConfigurationError(
                "--tensorboard: it is not installed: pip install 'tailorpo[tensorboard]'"
            ) from None
        self.folder, self._open = RunFolder(root), SummaryWriter
        self._writer: SummaryWriter | None = None

    def begin(self, start: RunStart) -> None:
        purge_step = start.iteration + 1 if start.iteration else 0
        self._writer = self._open(str(self.folder.root / "tensorboard"), purge_step=purge_step)

    def iteration(self, line: Line) -> None:
        self._scalars("training", line)

    def evaluation(self, line: Line) -> None:
        import numpy
        from PIL import Image

        self._scalars("evaluation", line)
        for number, prompt in enumerate(line["prompts"]):
            with Image.open(self.folder.sample(line["iteration"], number)) as picture:
                self._opened_writer.add_image(
                    f"{number:03d}: {prompt}", numpy.asarray(picture), line["iteration"], dataformats="HWC"
                )

    def checkpoint(self, line: Line) -> None:
        self._scalars("checkpoint", line)

    def alarm(self, line: Line) -> None:
        self._opened_writer.add_text(f"alarm/{line['name']}", line["message"], line["iteration"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, prefix: str, line: Line) -> None:
        for tag, value in _scalars_of(prefix, line):
            self._opened_writer.add_scalar(tag, value, line["iteration"])

    @property
    def _opened_writer(self) -> "SummaryWriter":
        assert self._writer is not None, "`begin` comes before any line"
        return self._writer


def _scalars_of(prefix: str, line: Line) -> Iterator[tuple[str, float]]:
    """Every number of a line with its tag: `training/loss`, `training/gap_by_step/12`."""
    for key, value in line.items():
        match value:
            case _ if key in EXCLUDED:
                continue
            case Mapping():
                yield from _scalars_of(f"{prefix}/{key}", value)
            case float() | int():
                yield f"{prefix}/{key}", value
