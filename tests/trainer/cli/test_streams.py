"""Standard streams that are closed, full or gone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer.errors import ExitCode

MAIN = "import sys; from tailorpo_trainer.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def path(document: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """A small job."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(document(evaluation={"everyIterations": 0})))
    return file


def shell(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `"$@" command` in a shell, where "$@" is our program."""
    program = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(["bash", "-c", f'"$@" {command}', "-", *program], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(exit)"])
def test_a_command_ends_as_always(path: Path, streams: str) -> None:
    assert shell(streams, "validate", path).returncode == 0
    assert shell(streams, "validate", path.parent / "none.json").returncode == ExitCode.CONFIGURATION


@pytest.mark.parametrize("streams", ["2> >(head -1)", "2>/dev/full", "2>&- >&-"])
def test_a_run_goes_on_without_a_display(path: Path, tmp_path: Path, streams: str) -> None:
    done = shell(streams, "run", path, "--output", tmp_path / "run")
    assert (done.returncode, done.stdout.count("Traceback")) == (0, 0)
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["phase"] == "Succeeded"


def test_a_run_whose_terminal_is_closed_goes_on(path: Path, tmp_path: Path) -> None:
    """The shell sends SIGHUP, and writing gives EIO."""
    main, side = os.openpty()
    program = [sys.executable, "-c", MAIN, "run", str(path), "--output", str(tmp_path / "run")]
    run = subprocess.Popen(program, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    while b"adapter weights" not in os.read(main, 65_536):
        pass
    os.close(main)
    run.send_signal(signal.SIGHUP)
    assert run.wait(240) == 0
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["phase"] == "Succeeded"


EARLY = "stopped by SIGINT while it was loading: there was nothing to save, the same command starts again\n"


@pytest.mark.parametrize(("module", "said"), [("torch", ""), ("diffusers", EARLY)])
def test_ctrl_c_while_a_library_is_imported(path: Path, tmp_path: Path, module: str, said: str) -> None:
    """Also where the library makes another error of it."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import os, signal, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and os.environ.pop("INTERRUPT", None):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except KeyboardInterrupt as error:
                raise RuntimeError("half imported") from error

sys.meta_path.insert(0, Finder())
"""
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "INTERRUPT": "1"}
    program = [sys.executable, "-c", MAIN, "run", str(path), "--output", str(tmp_path / "run"), "--quiet"]
    done = subprocess.run(
        program,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        # A shell starts what runs in the background with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, said)
