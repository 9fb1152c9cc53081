"""What a person or a program reads while a run goes on."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from tailorpo_trainer.telemetry import display

ITERATION: dict[str, Any] = {
    "kind": "iteration",
    "iteration": 7,
    "reward": 1234.5678,
    "gap": 0.1234,
    "loss": 0.6931,
    "implicit_accuracy": 0.625,
    "logit": 0.000123,
    "gradient_norm": 0.0412,
    "images_per_second": 3.14159,
    "eta_seconds": 3723.2,
}
EVALUATION: dict[str, Any] = {
    "kind": "evaluation",
    "iteration": 10,
    "reward": 41.237,
    "reward_standard_error": 0.51,
    "images": 48,
    "rewards": {"colourfulness": 41.0, "clip-score": 0.237},
    "diversity": 0.2134,
    "feature_diversity": 0.3,
}
ALARM: dict[str, Any] = {"kind": "alarm", "iteration": 9, "name": "gap-at-zero", "message": "no [bold]pair[/] :smile:"}
NOTHING = dict.fromkeys(ITERATION) | {"kind": "iteration", "iteration": 1}


def show(shown: display.Display) -> None:
    shown.message("a [red]message[/red] :smile:")
    shown.iteration(ITERATION)
    shown.iteration(NOTHING)
    shown.evaluation(EVALUATION)
    shown.evaluation(dict.fromkeys(EVALUATION) | {"iteration": 0, "rewards": {"a": None, "b": 1.0}})
    shown.alarm(ALARM)
    shown.close()


def test_json_is_nothing_but_json_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    show(display.open_display("json", 10, 0))
    out, err = capsys.readouterr()
    lines = [json.loads(text, parse_constant=pytest.fail) for text in out.splitlines()]
    assert [line["kind"] for line in lines][:4] == ["message", "iteration", "iteration", "evaluation"]
    assert lines[1] == ITERATION
    assert lines[-1] == ALARM
    assert err == ""


def test_json_refuses_what_is_none() -> None:
    with pytest.raises(ValueError, match="JSON"):
        display.Json(io.StringIO()).iteration({"loss": float("nan")})


def test_quiet_is_nothing_but_alarms(capsys: pytest.CaptureFixture[str]) -> None:
    show(display.open_display("quiet", 10, 0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "alarm: gap-at-zero: no [bold]pair[/] :smile:\n"


def test_plain_lines_are_for_people_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    show(display.open_display("auto", 10, 0))  # no terminal here
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "a [red]message[/red] :smile:",
        "iteration 7/10  reward 1235  implicit accuracy 62%  gap 0.123  logit 0.00012  3.1 images/s  ETA 1:02:03",
        "evaluation at iteration 10: reward 41.2 ± 1.0  colourfulness 41  clip-score 0.237  diversity 0.213  "
        "feature diversity 0.300",
        "evaluation at iteration 0: reward not finite  a not finite  b 1",
        "alarm: gap-at-zero: no [bold]pair[/] :smile:",
    ]


def test_without_pairs_the_gradient_is_shown() -> None:
    line = {key: value for key, value in ITERATION.items() if key not in ("gap", "implicit_accuracy")}
    assert display.figures(line) == ["reward 1235", "gradient norm 0.041", "3.1 images/s"]


def test_before_the_first_update_nothing_is_ordered() -> None:
    line = ITERATION | {"implicit_accuracy": None, "logit": 0.0}
    assert display.figures(line) == ["reward 1235", "gap 0.123", "logit 0", "3.1 images/s"]


def test_plain_lines_come_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]  # also soon after the machine was started
    monkeypatch.setattr("tailorpo_trainer.telemetry.display.time.monotonic", lambda: clock[0])
    out = io.StringIO()
    shown = display.Plain(out, 10)
    for number in range(1, 11):
        shown.iteration(ITERATION | {"iteration": number})
        clock[0] += 2
    assert re.findall(r"iteration (\d+)/", out.getvalue()) == ["1", "4", "7", "10"]


@pytest.mark.parametrize(("value", "text"), [(0.00012345, "0.0001234"), (12345.6, "12346"), (1.5e9, "1.5e+09")])
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert display.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (90061, "25:01:01")])
def test_durations(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def on_terminal(width: int, code: str) -> str:
    """What a program writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    assert process.wait(timeout=30) == 0, b"".join(parts)
    return b"".join(parts).decode()


LIVE = f"""
from tailorpo_trainer.telemetry.display import open_display
shown = open_display("auto", 100, 5)
shown.message("a [red]message[/red] :smile: {"x" * 100}/report.html")
shown.iteration({ITERATION!r})
shown.evaluation({EVALUATION!r})
shown.alarm({ALARM!r})
shown.iteration({ITERATION | {"iteration": 8}!r})
shown.close()
"""


@pytest.mark.parametrize("width", [40, 60, 140])
def test_a_live_display_fits_its_terminal(width: int) -> None:
    text = on_terminal(width, LIVE)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "a [red]message[/red] :smile:" in plain
    assert f"{'x' * 100}/report.html" in plain  # in one piece, to be copied
    assert "no [bold]pair[/] :smile:" in " ".join(plain.split())
    bars = [part for part in re.split(r"[\r\n]+", plain) if "━" in part]
    assert all(len(bar) <= width for bar in bars)
    assert "8/100" in bars[-1]
    assert "ETA 1:02:03" in bars[-1]
    assert ("reward 1235" in bars[-1]) == (width >= 60)
    assert ("held out 41.24  implicit accuracy 62%  gap 0.123  logit 0.00012  3.1 images/s" in bars[-1]) == (
        width == 140
    )
