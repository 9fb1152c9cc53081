"""The cost of checkpoints: the stall of training, the upload against boto3's, the resume, and memory.

`python -m benchmarks.training.checkpoints [--repeats N] > docs/benchmarks-checkpoints.md` starts a SeaweedFS on this
machine, so server and client share its processors. Measurements that are compared are interleaved.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.documents import tiny_animals
from benchmarks.training.rollout_cost import machine
from tailorpo_trainer import checkpoint, document
from tailorpo_trainer.checkpoint.attempt import Groups
from tailorpo_trainer.checkpoint.storage.s3 import S3Store
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.training import loop
from tailorpo_trainer.training.session import Session

BUILD = Path("build/benchmarks")
STALL_GOAL, UPLOAD_GOAL, MEMORY_GOAL = 0.01, 0.9, 4.0
EVERY, ITERATIONS, RANK = 10, 30, 16


def job(storage: str | None = None, iterations: int = ITERATIONS) -> TailorPOJob:
    """A run with a checkpoint every ten iterations."""
    return document.parse(
        tiny_animals(
            "benchmark",
            training={"iterations": iterations, "promptsPerIteration": 8},
            checkpoint={"everyIterations": EVERY, "storage": storage},
        )
    )


def stall(storage: str | None, folder: Path) -> dict[str, Any]:
    """The seconds that training waited for each checkpoint, and the seconds of each iteration."""
    waits: list[float] = []
    whole = Session.checkpoint

    def timed(self: Session) -> None:
        since = time.perf_counter()
        whole(self)
        waits.append(time.perf_counter() - since)

    Session.checkpoint = timed  # type: ignore[method-assign]
    directory = Path.cwd()
    try:
        os.chdir(folder)
        loop.run(job(storage), display="quiet")
    finally:
        os.chdir(directory)
        Session.checkpoint = whole  # type: ignore[method-assign]
    lines = [json.loads(line) for line in (folder / "runs/benchmark/metrics.jsonl").read_text().splitlines()]
    ends = [0.0, *(line["totals"]["seconds"] for line in lines if line["kind"] == "iteration")]
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {"waits": waits, "iterations": seconds, "share": statistics.median(waits) / statistics.median(seconds)}


def large_state(rank: int = RANK) -> Groups:
    """An adapter of all attention layers of SDXL's denoiser, and AdamW's two moments: real shapes, random values."""
    drawn = torch.Generator().manual_seed(0)
    adapter: dict[str, Tensor] = {}
    for width, blocks in ((640, 10), (1280, 60)):  # transformer blocks of 640 and of 1280 channels; text has 2048
        for block in range(blocks):
            for attention, context in (("attn1", width), ("attn2", 2048)):
                for layer, inputs in (("to_q", width), ("to_k", context), ("to_v", context), ("to_out.0", width)):
                    name = f"{width}.{block}.{attention}.{layer}"
                    adapter[f"{name}.lora_A"] = torch.randn(rank, inputs, generator=drawn)
                    adapter[f"{name}.lora_B"] = torch.randn(width, rank, generator=drawn)
    moments = {f"{name}.{moment}": torch.rand_like(value) for name, value in adapter.items() for moment in "ab"}
    return {"adapter": adapter, "optimizer": moments}


def total_bytes(groups: Groups) -> int:
    return sum(value.nbytes for group in groups.values() for value in group.values())


def upload(uri: str, groups: Groups, repeats: int, folder: Path) -> dict[str, Any]:
    """Commits of a state (hashed and uploaded) against `upload_file` of the same bytes, interleaved."""
    store = checkpoint.open_store(uri)
    assert isinstance(store, S3Store)
    snapshot = checkpoint.capture(1, groups, {})
    for name, content in snapshot.objects.items():
        (folder / name).write_bytes(content)
    files = sorted(folder.iterdir())
    attempt = checkpoint.open_run(store, job()).begin(None)

    def commit() -> None:
        attempt.commit(replace(snapshot, step=len(seconds["commit"]) + 1))

    def write() -> None:
        for name, content in snapshot.objects.items():
            store.write(f"plain/{name}", content)

    def plain() -> None:
        for path in files:
            store.client.upload_file(str(path), store.bucket, f"{store.prefix}boto3/{path.name}")

    methods: dict[str, Callable[[], None]] = {"commit": commit, "write": write, "upload_file": plain}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    orders = list(itertools.permutations(methods))  # so that none is always first, or always after the same one
    for turn in range(repeats):
        for name in orders[turn % len(orders)]:
            since = time.perf_counter()
            methods[name]()
            seconds[name].append(time.perf_counter() - since)
    ratios = {
        name: [theirs / ours for theirs, ours in zip(seconds["upload_file"], seconds[name], strict=True)]
        for name in ("commit", "write")
    }
    return {"bytes": sum(map(len, snapshot.objects.values())), "seconds": seconds, "ratios": ratios}


def streamed(storage: str, groups: Groups) -> dict[str, Any]:
    """Two checkpoints of a state, the second while the first is written: seconds of each `save` and of a commit."""
    attempt = checkpoint.open_run(checkpoint.open_store(storage), job()).begin(None)
    commits: list[float] = []
    stream = checkpoint.BackgroundWriter(attempt, 3, 3, after=lambda _, seconds: commits.append(seconds))
    waits = []
    for step in (1, 2):
        since = time.perf_counter()
        stream.save(step, groups, {})
        waits.append(time.perf_counter() - since)
    stream.close()
    return {"first": waits[0], "second": waits[1], "commit": sum(commits) / 2}


def resume(storage: str) -> float:
    """Seconds to find, read and verify the newest checkpoint and to build its tensors."""
    since = time.perf_counter()
    found = checkpoint.open_run(checkpoint.open_store(storage), job()).latest()
    assert found is not None
    for group in found.groups:
        found.tensors(group)
    return time.perf_counter() - since


def peak(storage: str) -> float:
    """Peak memory of writing two large states, without the live one, in units of its size; in a new process."""
    code = f"from benchmarks.training import checkpoints; checkpoints.print_peak({storage!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(storage: str) -> None:
    small: Groups = {"adapter": {"up": torch.zeros(1)}}
    streamed(storage + "-small", small)  # libraries, threads, connections
    groups = large_state()
    before = _kilobytes("VmRSS")
    streamed(storage, groups)
    print((_kilobytes("VmHWM") - before) * 1024 / total_bytes(groups))


def _kilobytes(name: str) -> int:
    """A figure of this process from /proc: memory in use (VmRSS), or its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(repeats: int, uri: str) -> dict[str, Any]:
    """All figures, JSON-ready; `uri` is an S3 prefix that may be written to."""
    found: dict[str, Any] = {"machine": machine(), "repeats": repeats}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for location, storage in (("folder", None), ("S3", f"{uri}/tiny")):
            (folder / location).mkdir()
            found[f"stall {location}"] = stall(storage, folder / location)
        groups = large_state()
        found["state"] = {"rank": RANK, "bytes": total_bytes(groups), "tensors": sum(map(len, groups.values()))}
        for location, storage in (("folder", f"{folder}/large"), ("S3", f"{uri}/large")):
            found[f"large {location}"] = [streamed(f"{storage}-{number}", groups) for number in range(repeats)]
            found[f"resume {location}"] = [resume(f"{storage}-0") for _ in range(repeats)]
        (folder / "files").mkdir()
        found["upload"] = upload(f"{uri}/upload", groups, repeats, folder / "files")
        found["peak"] = {"folder": peak(f"{folder}/peak"), "S3": peak(f"{uri}/peak")}
    return found


def markdown(found: dict[str, Any]) -> str:
    """The section of `docs/benchmarks.md`."""
    state, uploaded, host = found["state"], found["upload"], found["machine"]
    text = [
        "## Checkpoints\n",
        f"`tiny-animals`, a checkpoint every {EVERY} iterations. Training waits for the copy to host memory alone:\n",
        "| kept in | stall of one checkpoint | an iteration | stall / iteration | goal |",
        "|---|--:|--:|--:|--:|",
    ]
    for location in ("folder", "S3"):
        one = found[f"stall {location}"]
        text.append(
            f"| {location} | {_span(one['waits'], 1e3)} ms | {statistics.median(one['iterations']):.2f} s | "
            f"{one['share']:.2%} | ≤ {STALL_GOAL:.0%} |"
        )
    text += [
        f"\nA state as large as that of a LoRA of rank {state['rank']} on all attention layers of SDXL with AdamW: "
        f"{state['tensors']:,} tensors, {state['bytes'] / 1e6:.0f} MB; two checkpoints, the second while the first is "
        "written. Memory is the most that was taken beyond the live state, in states, while one is written and one "
        "waits.\n",
        "| kept in | stall | stall of the second | commit | find, read, verify | memory | goal |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for location in ("folder", "S3"):
        runs = found[f"large {location}"]
        cells = [_span([run[name] for run in runs], 1, 2) for name in ("first", "second", "commit")]
        cells.append(_span(found[f"resume {location}"], 1, 2))
        text.append(f"| {location} | {' s | '.join(cells)} s | {found['peak'][location]:.1f} | < {MEMORY_GOAL:.0f} |")
    text += [
        "\nThe same bytes to the same server, in turns; throughput against boto3's `upload_file` of files with its own "
        "settings. A commit also hashes, and writes the manifest.\n",
        "| | MB/s | ÷ `upload_file` | goal |",
        "|---|--:|--:|--:|",
    ]
    for name, label in (("commit", "commit"), ("write", "its objects alone"), ("upload_file", "`upload_file`")):
        speeds = [uploaded["bytes"] / 1e6 / seconds for seconds in uploaded["seconds"][name]]
        ratio = f"{_span(uploaded['ratios'][name], 1, 2)} | ≥ {UPLOAD_GOAL}" if name in uploaded["ratios"] else "1 | "
        text.append(f"| {label} | {_span(speeds, 1, 0)} | {ratio} |")
    text.append(
        f"\nMedians of {found['repeats']} repeats (least–greatest in brackets; of all checkpoints for stalls) on "
        f"{host['processor']}, {os.cpu_count()} processors with load {host['load']} when it began (above their number "
        f"other work made all times longer), {host['threads']} threads, torch {host['torch']}; SeaweedFS on the same "
        "machine."
    )
    return "\n".join(text)


def _span(values: Sequence[float], factor: float, digits: int = 1) -> str:
    least, middle, most = (value * factor for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.checkpoints", description=__doc__)
    parser.add_argument("--repeats", type=int, default=6, help="timed repeats; six are all orders")
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.conftest import Weed

    with tempfile.TemporaryDirectory() as folder:
        weed = Weed(Path(folder))
        try:
            weed.start()
            os.environ.update(weed.server.environment)
            weed.server.client().create_bucket(Bucket="benchmark")
            found = measure(given.repeats, "s3://benchmark")
        finally:
            weed.kill()
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "checkpoints.json").write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
