"""Text at terminals of 40, 80 and 120 columns, as their users see it."""

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from tailorpo_trainer import cli, terminal

HEAD = ["", "before", "after", "difference"]
ROWS = [
    ["held-out reward", "110.8 ± 5.1", "144.4 ± 4.9", "+33.6 ± 4.3"],
    ["  feature diversity", "0.324", "", "-0.089"],
]
PATH = "/a/path/that/is/longer/than/a/line/of/a/narrow/terminal/report.html"
BAD = """\
apiVersion: tailorpo.dev/v1alpha1
kind: TailorPOJob
metadata: {name: test}
spec:
  prompts: {builtin: animals}
  rewards: [{name: colourfulness}]
  method: {name: tailorpo, threshold: 1}
  sampling: {stepz: 20}
"""


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_words_and_paths_stay_whole(columns: int) -> None:
    text = f"the same command goes on from there: it is an out-of-memory error\nreport: {PATH}"
    lines = terminal.wrap(text, columns).split("\n")
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= columns or line == PATH for line in lines)
    assert terminal.wrap(text, None) == text


def test_a_table_that_fits_is_a_table() -> None:
    assert terminal.table(HEAD, ROWS, 80) == terminal.table(HEAD, ROWS, None) == [
        "                          before        after   difference",
        "held-out reward      110.8 ± 5.1  144.4 ± 4.9  +33.6 ± 4.3",
        "  feature diversity        0.324                    -0.089",
    ]  # fmt: skip


def test_a_table_that_does_not_fit_is_blocks() -> None:
    assert terminal.table(HEAD, ROWS, 40) == [
        "held-out reward",
        "  before 110.8 ± 5.1",
        "  after 144.4 ± 4.9",
        "  difference +33.6 ± 4.3",
        "  feature diversity",
        "    before 0.324",
        "    difference -0.089",
    ]


def on_terminal(columns: int, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What the program writes when both its streams are a terminal of this width."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(side, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("NO_COLOR", "1")
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        cli.main(arguments)
        stream.flush()
        text = os.read(main, 1 << 16).decode()
    os.close(main)
    return text.replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["validate", "bad.yaml"], ["report", "nothing"]])
def test_no_line_is_broken_within_a_word(
    columns: int,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(BAD)
    lines = on_terminal(columns, arguments, capfd)
    assert lines
    assert [line for line in lines if len(line) > columns and " " in line.strip()] == []


def test_a_width_that_is_unknown_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    main, side = pty.openpty()  # its width is 0
    with os.fdopen(side, "w") as stream, (tmp_path / "file").open("w") as file:
        assert terminal.width(stream) is None
        assert terminal.width(file) is None
        monkeypatch.setenv("COLUMNS", "33")
        assert terminal.width(stream) == 33
    os.close(main)
