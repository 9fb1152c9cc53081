"""What a person sees while a run goes on: a live display on a terminal, plain lines elsewhere, JSON, or nothing."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TextIO

Kind = Literal["auto", "plain", "json", "quiet"]
Line = Mapping[str, Any]

PLAIN_SECONDS = 5.0
"""Seconds between two plain iteration lines: a log is read, not watched."""


class Display(Protocol):
    """Told of everything worth showing; `line` is as in `metrics.jsonl`."""

    def message(self, text: str) -> None: ...
    def iteration(self, line: Line) -> None: ...
    def evaluation(self, line: Line) -> None: ...
    def alarm(self, line: Line) -> None: ...
    def close(self) -> None: ...


def open_display(kind: Kind, iterations: int, done: int) -> Display:
    """The display for this output: `auto` is live on a terminal and plain lines where there is none."""
    if kind == "json":
        return Json(sys.stdout)
    if kind == "quiet":
        return Quiet()
    if kind == "auto" and sys.stderr.isatty():
        return Live(iterations, done)
    return Plain(sys.stderr, iterations)


class Quiet:
    """Alarms only."""

    def message(self, text: str) -> None:
        pass

    def iteration(self, line: Line) -> None:
        pass

    def evaluation(self, line: Line) -> None:
        pass

    def alarm(self, line: Line) -> None:
        print(f"alarm: {line['name']}: {line['message']}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class Json:
    """Each line of `metrics.jsonl` as it is written, and messages as `{"kind": "message"}`."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def message(self, text: str) -> None:
        self._print({"kind": "message", "message": text})

    def iteration(self, line: Line) -> None:
        self._print(line)

    evaluation = alarm = iteration

    def close(self) -> None:
        pass

    def _print(self, line: Line) -> None:
        print(json.dumps(line), file=self.out, flush=True)


class Plain:
    """A line now and then, for logs."""

    def __init__(self, out: TextIO, iterations: int) -> None:
        self.out, self.iterations = out, iterations
        self._last = 0.0

    def message(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def iteration(self, line: Line) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_SECONDS or line["iteration"] == self.iterations:
            self._last = now
            self.message(f"iteration {line['iteration']}/{self.iterations}  {_figures(line)}")

    def evaluation(self, line: Line) -> None:
        self.message(f"evaluation at iteration {line['iteration']}: {evaluation_text(line)}")

    def alarm(self, line: Line) -> None:
        self.message(f"alarm: {line['name']}: {line['message']}")

    def close(self) -> None:
        pass


class Live:
    """One progress bar with the figures beside it; messages, evaluations and alarms scroll above it."""

    def __init__(self, iterations: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            expand=True,
        )
        self.task = self.progress.add_task("training", total=iterations, completed=done, figures="")
        self.progress.start()

    def message(self, text: str) -> None:
        self.progress.console.print(text, highlight=False, markup=False)

    def iteration(self, line: Line) -> None:
        self.progress.update(self.task, completed=line["iteration"], figures=_figures(line))

    def evaluation(self, line: Line) -> None:
        from rich.text import Text

        self.progress.console.print(Text.assemble((f"  iteration {line['iteration']:>5}  ", "bold"), evaluation_text(line)))

    def alarm(self, line: Line) -> None:
        from rich.text import Text

        self.progress.console.print(Text.assemble((f"  {line['name']}: ", "bold yellow"), line["message"]))

    def close(self) -> None:
        self.progress.stop()


def evaluation_text(line: Line) -> str:
    """An evaluation in one line: the reward with its 95 % interval, the other scores, diversity."""
    parts = [f"reward {line['reward']:.4g} ± {1.96 * line['reward_standard_error']:.2g}"]
    if len(line["rewards"]) > 1:
        parts += [f"{name} {value:.4g}" for name, value in line["rewards"].items()]
    if line.get("diversity") is not None:
        parts.append(f"diversity {line['diversity']:.3f}")
    return "  ".join(parts)


def _figures(line: Line) -> str:
    gap = f"gap {line['gap']:.3g}  " if line.get("gap") is not None else ""
    return f"reward {line['reward']:.4g}  {gap}loss {line['loss']:.3g}  {line['images_per_second']:.2g} images/s"
