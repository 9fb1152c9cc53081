"""Run the plan in one process. Finished trials are appended to a JSON-lines file, so a killed sweep can be resumed."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import judging
from benchmarks.methods import analysis, costs, files, plan
from benchmarks.methods.files import Result
from benchmarks.methods.plan import Trial
from tailorpo_trainer.errors import StoppedError, TailorPOError
from tailorpo_trainer.results.run_folder import RunFolder
from tailorpo_trainer.training import loop


def run(folder: Path, report: Callable[[str], None] = print) -> None:
    """Run all trials that `folder/trials.jsonl` does not have: the grid, its refinement, and the finals of the best."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trials.jsonl"
    _run_missing(plan.tuning(), path, report)
    _run_missing(plan.refinement(analysis.chosen(analysis.grid(files.read(path)), plan.SPOILT)), path, report)
    _run_missing(plan.finals(analysis.chosen(files.read(path), plan.SPOILT)), path, report)


def _run_missing(trials: Iterable[Trial], path: Path, report: Callable[[str], None]) -> None:
    done = {result["key"] for result in files.read(path)}
    for trial in trials:
        if trial.key not in done:
            result = run_trial(trial, path.parent)
            files.append(result, path)
            report(f"{trial.key}: {_last(result)} in {result['seconds']:.0f} s")


def run_trial(trial: Trial, folder: Path, model: str = "tiny-animals", images: int = plan.EVALUATED) -> Result:
    """Train one trial in a temporary folder. A failure, such as a loss that is not finite, is a result too."""
    since = time.perf_counter()
    flops = _flops(trial.reward, trial.method, model)
    job = plan.job(trial, plan.iterations(trial.budget, flops), model, images)
    output = RunFolder(Path(tempfile.mkdtemp(dir=folder)))
    error = None
    try:
        try:
            loop.run(job, output.root, display="quiet")
        except StoppedError:
            raise  # not a result: the next sweep repeats it
        except TailorPOError as found:
            error = str(found)
        evaluations = [_evaluation(output, line) for line in output.read_metrics() if line["kind"] == "evaluation"]
        if trial.stage == "final" and trial.seed == plan.SEEDS[0] and not error:
            _keep_pictures(output, folder / "pictures" / trial.reward / trial.method)
    finally:
        shutil.rmtree(output.root)
    return {
        "key": trial.key,
        **vars(trial),
        "iterations": job.spec.training.iterations,
        "flops_per_iteration": flops,
        "evaluations": evaluations,
        "error": error,
        "seconds": round(time.perf_counter() - since, 1),
    }


@cache
def _flops(reward: str, method: str, model: str) -> float:
    rate, beta = plan.settings(method)[0]
    return costs.of_iteration(plan.job(Trial("tuning", reward, method, rate, beta, 0), 1, model))


def _evaluation(output: RunFolder, line: dict[str, Any]) -> dict[str, Any]:
    totals = line["totals"]
    return {
        "iteration": line["iteration"],
        "images": totals.get("images", 0),
        "reward_queries": totals.get("reward_queries", 0),
        "denoiser_forwards": totals.get("denoiser_forwards", 0),
        "rewards": {name: round(value, 5) for name, value in line["rewards"].items()},
        "standard_error": round(line["reward_standard_error"], 5),
        "diversity": None if line["diversity"] is None else round(line["diversity"], 6),
        "named": named(output, line["iteration"], line["prompts"]),
    }


def _keep_pictures(output: RunFolder, folder: Path) -> None:
    """Of the first and of the last evaluation."""
    first, *_, last = sorted(output.samples.iterdir())
    for name, source in (("first", first), ("last", last)):
        shutil.copytree(source, folder / name, dirs_exist_ok=True)


def named(output: RunFolder, iteration: int, prompts: Sequence[str]) -> float:
    """Share of an evaluation's kept pictures in which the judge names the animal that was asked for."""
    pictures = [np.asarray(Image.open(output.sample(iteration, n)).convert("RGB")) for n in range(len(prompts))]
    return round(judging.share_right(np.stack(pictures), prompts), 5)


def _last(result: Result) -> str:
    if result["error"] or not result["evaluations"]:
        return f"failed: {result['error']}"
    first, last = result["evaluations"][0], result["evaluations"][-1]
    change = last["rewards"][result["reward"]] - first["rewards"][result["reward"]]
    return f"{change:+.3f}, judge {first['named']:.2f} -> {last['named']:.2f}"
