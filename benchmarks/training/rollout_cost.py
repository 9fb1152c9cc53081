"""One training iteration of this package against `plain_loop`, one by one and batched, paired and interleaved.

`python -m benchmarks.training.rollout_cost [--repeats N] [--model PATH] [--markdown]`. All three compute the same:
noise, trained steps, decoder and reward are equal, and the adapter's gradients are asserted to be equal. FLOPs are
counted by torch's FLOP counter in passes of their own; times are wall-clock seconds of other passes.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.contenders import ONE_BY_ONE, OURS, contenders, count, job
from benchmarks.training.pages import lines, markdown
from tailorpo_trainer import estimate, models
from tailorpo_trainer.spec.job import TailorPOJob

BUILD = Path("build/benchmarks")
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

EQUAL = 1e-4
"""Largest relative difference of two gradients that count as equal, in float32."""


def difference(ours: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|g - g'| / |g'| over all weights."""
    assert ours.keys() == other.keys()
    differences = sum(float((ours[name].double() - other[name].double()).square().sum()) for name in ours)
    size = sum(float(gradient.double().square().sum()) for gradient in other.values())
    return float((differences / size) ** 0.5)


def measure(work: TailorPOJob, repeats: int, report: Callable[[str], None] = print) -> dict[str, Any]:
    """All figures, JSON-ready. Raises AssertionError if two gradients differ."""
    all_contenders = contenders(work)
    ours, *plain = all_contenders
    gradients = {contender.name: count(contender) for contender in all_contenders}
    differences = {other.name: difference(gradients[OURS], gradients[other.name]) for other in plain}
    for name, value in differences.items():
        report(f"gradient, ours against {name}: relative difference {value:.1e}")
        assert value < EQUAL, f"the loops do not compute the same: gradients differ by {value:.1e}"
    for number in range(repeats):
        turn = number % len(all_contenders)
        for contender in [*all_contenders[turn:], *all_contenders[:turn]]:  # interleaved, and none is always first
            wall, cpu = time.perf_counter(), time.process_time()
            contender.run()
            contender.seconds.append(time.perf_counter() - wall)
            contender.cpu_seconds.append(time.process_time() - cpu)
    run = work.spec
    found: dict[str, Any] = {
        "machine": machine(),
        "model": run.model.name,
        "samples": run.training.prompts_per_iteration,
        "steps": run.sampling.steps,
        "trainedSteps": run.sampling.trained_steps.count,
        "repeats": repeats,
        "gradientDifference": differences,
        "rows": {contender.name: contender.rows for contender in all_contenders},
        "flops": {contender.name: contender.flops for contender in all_contenders},
        "denoiserFlopsRatio": ours.denoiser_flops / plain[0].denoiser_flops,
        "seconds": {contender.name: contender.seconds for contender in all_contenders},
        "timeRatio": {other.name: _ratio(ours.seconds, other.seconds) for other in plain if repeats},
        "cpuTimeRatio": {other.name: _ratio(ours.cpu_seconds, other.cpu_seconds) for other in plain if repeats},
        "stableDiffusion": stable_diffusion(work, {contender.name: contender.rows for contender in all_contenders}),
    }
    for line in lines(found):
        report(line)
    return found


def _ratio(ours: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Ratios of neighbouring runs, so that the machine's load affects both."""
    ratios = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def stable_diffusion(work: TailorPOJob, rows: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The same iteration on Stable Diffusion 1.5, in FLOPs: the rows counted here times the FLOPs of one
    row there.

    The FLOPs of a row are counted on the network built from its configuration on the meta device. A whole
    iteration
    cannot run there: it chooses winners, and a meta tensor has no values.
    """
    spec = work.spec.model_copy(update={"model": job(SD15).spec.model})
    found = estimate.estimate(work.model_copy(update={"spec": spec}))
    each = {
        "forward": found.flops["forward", "training"],
        "reference": found.flops["forward", "reference"],
        "backward": found.flops["forward backward", "training"],
        "decode": found.flops["decode", "scoring"],
    }
    samples = work.spec.training.prompts_per_iteration
    work_of = {}
    for name, counted in rows.items():
        reference = counted["forward of the reference"]
        denoiser = (
            (counted["forward"] - reference) * each["forward"]
            + reference * each["reference"]
            + counted["forward with gradient"] * each["backward"]
        )
        work_of[name] = {
            "denoiserFlops": denoiser / samples,
            "decoderFlops": counted["decode"] * each["decode"] / samples,
            "forwardEquivalents": denoiser / samples / each["reference"],
        }
    ours, plain = work_of[OURS], work_of[ONE_BY_ONE]
    return {
        "flopsPerRow": each,
        "perTrajectory": work_of,
        "denoiserFlopsRatio": ours["denoiserFlops"] / plain["denoiserFlops"],
        "allFlopsRatio": (ours["denoiserFlops"] + ours["decoderFlops"])
        / (plain["denoiserFlops"] + plain["decoderFlops"]),
    }


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name from /proc/cpuinfo, if there is one."""
    try:
        found = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in found if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.rollout_cost", description=__doc__)
    options(parser)
    given = parser.parse_args(arguments)
    found = run(given.model, given.repeats, quiet=given.markdown)
    if given.markdown:
        print(markdown(found))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats; 0 counts only")
    parser.add_argument("--model", default=models.SHIPPED, help="pipeline folder or shipped name")
    parser.add_argument("--markdown", action="store_true", help="print tables for docs/benchmarks.md")


def run(model: str, repeats: int, quiet: bool = False) -> dict[str, Any]:
    """Measure, and write the figures to `build/benchmarks/rollout.json`."""
    found = measure(job(model), repeats, report=(lambda line: None) if quiet else print)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "rollout.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
