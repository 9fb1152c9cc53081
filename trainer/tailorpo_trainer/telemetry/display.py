"""Console output of a run: a live display on a terminal, plain lines elsewhere, JSON lines, or alarms only."""

import json
import math
import sys
import time
from typing import Literal, TextIO

from tailorpo_trainer import terminal
from tailorpo_trainer.stats import t_quantile, with_interval
from tailorpo_trainer.telemetry.observer import Line, Observer

Kind = Literal["auto", "plain", "json", "quiet"]

PLAIN_SECONDS = 5.0
"""Least time between two plain lines about iterations, so that a log stays short."""


class Display(Observer):
    """Shows lines and messages. This base class shows nothing; it serves the processes other than the first."""

    def message(self, text: str) -> None: ...


def open_display(kind: Kind, iterations: int, done: int) -> Display:
    """The display of this kind; `auto` is live on a terminal, and plain lines elsewhere."""
    if kind == "json":
        return Json(sys.stdout)
    if kind == "quiet":
        return Quiet()
    if kind == "auto" and sys.stderr.isatty():
        return Live(iterations, done)
    return Plain(sys.stderr, iterations)


class Quiet(Display):
    """Shows alarms only."""

    def alarm(self, line: Line) -> None:
        print(f"alarm: {line['name']}: {line['message']}", file=sys.stderr, flush=True)


class Json(Display):
    """Prints each line of `metrics.jsonl` as it is written, and messages as `{"kind": "message"}`."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def message(self, text: str) -> None:
        self._print({"kind": "message", "message": text})

    def iteration(self, line: Line) -> None:
        self._print(line)

    evaluation = checkpoint = alarm = iteration

    def _print(self, line: Line) -> None:
        print(json.dumps(line, allow_nan=False), file=self.out, flush=True)


class Plain(Display):
    """Prints a line every few seconds, for logs."""

    def __init__(self, out: TextIO, iterations: int) -> None:
        self.out, self.iterations = out, iterations
        self._last = -PLAIN_SECONDS

    def message(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def iteration(self, line: Line) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_SECONDS or line["iteration"] == self.iterations:
            self._last = now
            eta = line.get("eta_seconds")
            eta_text = [f"ETA {duration(eta)}"] if eta else []
            self.message("  ".join([f"iteration {line['iteration']}/{self.iterations}", *figures(line), *eta_text]))

    def evaluation(self, line: Line) -> None:
        self.message(f"evaluation at iteration {line['iteration']}: {evaluation_text(line)}")

    def alarm(self, line: Line) -> None:
        self.message(f"alarm: {line['name']}: {line['message']}")


class Live(Display):
    """Shows one progress bar with figures beside it; messages, evaluations and alarms scroll above it."""

    def __init__(self, iterations: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self.iterations = iterations
        self.console = Console(stderr=True, highlight=False, emoji=False)
        self.progress = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            console=self.console,
            expand=True,
        )
        self._held_out: float | None = None
        self._line: Line = {"iteration": done}
        self.task = self.progress.add_task("", total=iterations, completed=done, figures=self._figures())
        self.progress.start()

    def message(self, text: str) -> None:
        from rich.text import Text

        # Not wrapped by rich, which breaks long words: a path can be copied.
        self.console.print(Text(terminal.wrap(text, self.console.width)), soft_wrap=True)

    def iteration(self, line: Line) -> None:
        self._line = line
        self.progress.update(self.task, completed=line["iteration"], figures=self._figures())

    def evaluation(self, line: Line) -> None:
        head = f"iteration {line['iteration']}" if line["iteration"] else "base model"
        self._scroll(f"{head:>14}  ", evaluation_text(line))
        self._held_out = line.get("reward")
        self.progress.update(self.task, figures=self._figures())

    def alarm(self, line: Line) -> None:
        self._scroll(f"{line['name']}: ", line["message"], "bold yellow")

    def close(self) -> None:
        self.progress.stop()

    def _scroll(self, head: str, text: str, style: str = "bold") -> None:
        from rich.text import Text

        self.console.print(Text.assemble((head, style), text))

    def _figures(self) -> str:
        """The text beside a bar of at least 10 columns: iteration and ETA, and as many figures as fit."""
        line, eta = self._line, self._line.get("eta_seconds")
        ends = [f"{line['iteration']}/{self.iterations}", *([f"ETA {duration(eta)}"] if eta is not None else [])]
        held_out = [f"held out {number(self._held_out)}"] if self._held_out is not None else []
        shown = figures(line)
        middle = [*shown[:1], *held_out, *shown[1:]]
        while middle and len("  ".join([*ends, *middle])) > self.console.width - 12:
            middle.pop()
        return "  ".join([*ends[:1], *middle, *ends[1:]])


def evaluation_text(line: Line) -> str:
    """An evaluation in one line: the reward with its 95 % interval, the other scores, diversity."""
    reward, error = line.get("reward"), line.get("reward_standard_error")
    half = t_quantile(line["images"] - 1) * error if error is not None else math.nan
    texts = [f"reward {number(reward) if reward is None else with_interval(reward, half)}"]
    if len(line["rewards"]) > 1:
        texts += [f"{name} {number(value)}" for name, value in line["rewards"].items()]
    for key in ("diversity", "feature_diversity"):
        if line.get(key) is not None:
            texts.append(f"{key.replace('_', ' ')} {line[key]:.3f}")
    return "  ".join(texts)


def figures(line: Line) -> list[str]:
    """The figures of one iteration that move, the most important first.

    A preference loss is not among them: it stays close to log 2 while the adapter is small.
    """
    learnt = ("logit", "logit") if "gap" in line else ("gradient norm", "gradient_norm")
    shown = [("reward", line.get("reward"), 4), ("gap", line.get("gap"), 3), (learnt[0], line.get(learnt[1]), 2)]
    texts = {name: f"{name} {number(value, digits)}" for name, value, digits in shown if value is not None}
    accuracy, rate = line.get("implicit_accuracy"), line.get("images_per_second")
    first = [texts.pop("reward")] if "reward" in texts else []
    first += [f"implicit accuracy {accuracy:.0%}"] if accuracy is not None else []
    return [*first, *texts.values(), *([f"{number(rate, 2)} images/s"] if rate is not None else [])]


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, and without an exponent below a million."""
    if value is None:
        return "not finite"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e6 else text


def duration(seconds: float) -> str:
    """90 -> 1:30, 3723 -> 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
