"""`make demo-cluster`: a cluster from the installation to the report, by the commands of a user."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tools.demo_cluster"]


def in_folder(folder: Path, text: str) -> list[str]:
    """The processes whose command line has this text."""
    found = subprocess.run(["pgrep", "--full", "--list-full", text], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if "pgrep" not in line]


def heed_sigint() -> None:
    """A shell starts what runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.timeout(900)
def test_from_the_installation_to_the_report(tmp_path: Path) -> None:
    command = [*COMMAND, "--iterations=2", f"--output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^tailorpo-operator-\S+ +1/1 +Running", done.stdout.replace("\n  ", "\n"), re.MULTILINE)
    assert re.search(r"^vivid-animals +Succeeded .*2/2", done.stdout, re.MULTILINE)
    assert "Events:" in done.stdout
    assert "firing: none" in done.stdout
    results = tmp_path / "results"
    assert (results / "adapter" / "pytorch_lora_weights.safetensors").stat().st_size > 1000
    assert "<svg" in (results / "report.html").read_text()
    page = (tmp_path / "index.html").read_text()
    for name in ("jobs", "operator", "training"):
        assert f'src="dashboard-{name}.png"' in page
        assert Image.open(tmp_path / f"dashboard-{name}.png").width > 1000
    [kubeconfig] = re.findall(r"kubeconfig: (\S+)", done.stdout)
    assert not Path(kubeconfig).parent.exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, f"--output={tmp_path}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    ) as running:
        assert running.stdout is not None
        text = ""
        for line in running.stdout:
            text += line
            if "get tpj --watch" in line:  # the operator and the first pods run
                running.send_signal(signal.SIGINT)
                break
        running.stdout.read()
        assert running.wait(60) == 128 + signal.SIGINT
    [kubeconfig] = re.findall(r"kubeconfig: (\S+)", text)
    assert not Path(kubeconfig).parent.exists()
    assert in_folder(tmp_path, str(Path(kubeconfig).parent)) == []
