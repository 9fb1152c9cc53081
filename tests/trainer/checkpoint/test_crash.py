"""SIGKILL anywhere in the checkpoint code: a resume always finds the last step that was acknowledged, whole."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

VICTIM = Path(__file__).with_name("victim.py")


def test_killed_anywhere_and_resumed_on_the_same_storage(tmp_path: Path) -> None:
    storage, acknowledged = tmp_path / "storage", tmp_path / "acknowledged"
    # Opening, loading and claiming take some 800 lines, a save with its pruning 1,000. One process forks all
    # lives, as importing torch is what takes time.
    lines = [str(random.Random(seed).randrange(1, 4000)) for seed in range(40)]
    done = subprocess.run(
        [sys.executable, str(VICTIM), str(storage), str(acknowledged), *lines],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [ended for ended, _ in results] == [signal.SIGKILL] * len(lines)
    assert "skipped" not in done.stderr  # nothing torn was ever visible

    steps = [found[1] for _, found in results if found]
    assert steps == sorted(steps)
    assert steps[-1] > 1

    # The last life ended well and cleaned up after all the others.
    last = int(acknowledged.read_text())
    assert last == steps[-1] + 3
    files = {path.relative_to(storage).as_posix() for path in storage.rglob("*") if path.is_file()}
    records = {name for name in files if name.endswith("/attempt.json")} | {"run.json"}
    (prefix,) = {name.partition("/step-")[0] for name in files - records}
    names = ["adapter.safetensors", "ema.safetensors", "manifest.json", "state.json"]
    assert files - records == {f"{prefix}/step-{step:08d}/{name}" for step in (last - 1, last) for name in names}
