"""Event files for TensorBoard: the lines of `metrics.jsonl` as scalars, and the pictures of each evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.telemetry.observer import Line, Observer, RunStart
from tailorpo_trainer.telemetry.scalars import scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


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
        self._scalars(line)

    def evaluation(self, line: Line) -> None:
        import numpy
        from PIL import Image

        self._scalars(line)
        for number, prompt in enumerate(line["prompts"]):
            with Image.open(self.folder.sample(line["iteration"], number)) as picture:
                self._opened_writer.add_image(
                    f"{number:03d}: {prompt}", numpy.asarray(picture), line["iteration"], dataformats="HWC"
                )

    def checkpoint(self, line: Line) -> None:
        self._scalars(line)

    def alarm(self, line: Line) -> None:
        self._opened_writer.add_text(f"alarm/{line['name']}", line["message"], line["iteration"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, line: Line) -> None:
        for tag, value in scalars(line):
            self._opened_writer.add_scalar(tag, value, line["iteration"])

    @property
    def _opened_writer(self) -> "SummaryWriter":
        assert self._writer is not None, "`begin` comes before any line"
        return self._writer
