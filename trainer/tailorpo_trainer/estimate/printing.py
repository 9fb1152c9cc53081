"""An estimate as text for people, and as JSON for programs."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tailorpo_trainer import terminal

if TYPE_CHECKING:
    from tailorpo_trainer.estimate import Estimate

TITLES = {
    "forward": "denoiser forwards",
    "forward backward": "denoiser backwards",
    "decode": "pictures decoded",
    "decode backward": "decoder backwards",
    "scoring decode": "pictures decoded by the scoring decoder",
    "scoring decode backward": "scoring decoder backwards",
    "text": "prompts encoded",
    "reward": "pictures scored",
}
PURPOSES = {"watching": "evaluation, watched"}
Row = tuple[str, ...]


def as_json(estimate: "Estimate") -> str:
    """JSON, schema version 1: keys may be added, but none changes its meaning. Counts are rows, memory is bytes."""
    values: dict[str, Any] = {
        "schemaVersion": 1,
        "job": estimate.job,
        "model": {"name": estimate.model, "architecture": estimate.architecture},
        "method": estimate.method,
        "iterations": estimate.iterations,
        "imagesPerIteration": estimate.images,
        "evaluations": estimate.counts.evaluations,
        "updates": estimate.counts.updates,
        "work": [
            {
                "what": what,
                "purpose": purpose,
                "perIteration": _whole(estimate.counts.iteration.get((what, purpose), 0)),
                "perEvaluation": _whole(estimate.counts.evaluation.get((what, purpose), 0)),
                "run": _whole(rows),
                "flopsPerRow": _whole(estimate.flops[what, purpose]),
                "flopsRun": _whole(estimate.flops[what, purpose] * rows),
            }
            for (what, purpose), rows in estimate.counts.run.items()
        ],
        "flops": {name: _whole(value) for name, value in _totals(estimate).items()},
        "forwardEquivalentsPerImage": round(estimate.forward_equivalents, 3),
        "memoryBytes": [{_camel(name): value for name, value in asdict(item).items()} for item in estimate.memory],
        "checkpointBytes": estimate.checkpoint_bytes,
        "adapterBytes": estimate.adapter_bytes,
        "storageBytes": estimate.checkpoint_bytes * estimate.keep,
        "notes": list(estimate.notes),
    }
    return json.dumps(values, indent=2)


def show(estimate: "Estimate") -> None:
    """Print tables and sentences, in lines that fit the terminal if standard output is one."""
    _say(
        f"{estimate.job}: {estimate.method} on {estimate.architecture}, {estimate.iterations:,} iterations of "
        f"{estimate.images:,} images and {estimate.counts.evaluations:,} evaluations"
    )
    _table(("", "per iteration", "per evaluation", "whole run", "FLOPs of the run"), list(_work(estimate)))
    _say(
        f"\nA guided prediction counts two forwards. The denoiser's work for one training image equals "
        f"{estimate.forward_equivalents:.1f} of its forwards."
    )
    _table(("memory", *(item.precision for item in estimate.memory)), list(_memory(estimate)))
    checkpoint, adapter = _bytes(estimate.checkpoint_bytes), _bytes(estimate.adapter_bytes)
    _say(f"\ncheckpoint: {checkpoint}, {estimate.keep} kept; adapter: {adapter}")
    for line in [*_hints(estimate), *estimate.notes]:
        _say(line)


def _work(estimate: "Estimate") -> Iterator[Row]:
    counts, previous = estimate.counts, ""
    for (what, purpose), rows in sorted(counts.run.items(), key=lambda item: list(TITLES).index(item[0][0])):
        if what != previous:
            yield (TITLES[what], "", "", "", "")
            previous = what
        iteration, evaluation = counts.iteration.get((what, purpose), 0), counts.evaluation.get((what, purpose), 0)
        flops = estimate.flops[what, purpose]
        yield (
            f"  {PURPOSES.get(purpose, purpose)}",
            _number(iteration),
            _number(evaluation),
            _number(rows),
            _flops(flops * rows) if flops else "not counted",
        )
    totals = _totals(estimate)
    yield (
        "FLOPs",
        *(_flops(totals[name]) for name in ("perIteration", "perEvaluation", "run")),
        _flops(totals["run"]),
    )


def _totals(estimate: "Estimate") -> dict[str, float]:
    work_of = {
        "perIteration": estimate.counts.iteration,
        "perEvaluation": estimate.counts.evaluation,
        "run": estimate.counts.run,
    }
    return {name: sum(estimate.flops[key] * rows for key, rows in work.items()) for name, work in work_of.items()}


def _memory(estimate: "Estimate") -> Iterator[Row]:
    lines = {
        "weights": "weights",
        "state": "adapter, gradient, optimiser",
        "update": f"update of {estimate.batches.update} rows",
        "update_checkpointed": "  with gradientCheckpointing",
        "sampling": f"sampling of {estimate.batches.sampling} rows",
        "decoding": f"decoding of {estimate.batches.decoding} pictures",
        "guidance": "reward gradient of the winners",
        "peak": "peak, about",
        "loading": "main memory while loading",
        "main_memory": "main memory on a CPU, about",
    }
    for name, title in lines.items():
        values = [getattr(item, name) for item in estimate.memory]
        if any(values):
            yield (title, *(_bytes(value) for value in values))


def _hints(estimate: "Estimate") -> Iterator[str]:
    """The settings that reduce the memory of the largest phase."""
    most = estimate.memory[-1]
    update = most.update_checkpointed if estimate.checkpointing else most.update
    phases = {
        "update": update,
        "sampling": most.sampling,
        "decoding": most.decoding,
        "guidance": most.guidance,
    }
    largest = max(phases, key=lambda name: phases[name])
    hints = {
        "update": ["spec.training.microBatchSize"]
        + ([] if estimate.checkpointing else ["gradientCheckpointing: true"]),
        "sampling": ["spec.training.samplingBatchSize"],
        "decoding": ["spec.training.decodeBatchSize", "vaeSlicing: true"],
        "guidance": ["spec.training.samplingBatchSize", "spec.method.rewardGuidance.gradient: detached"],
    }
    yield (
        f"To lower the peak ({largest}): {', or '.join(hints[largest])}. Results do not change with "
        + ("smaller batches." if largest != "guidance" else "smaller batches; `detached` is another gradient.")
    )


def _say(text: str) -> None:
    print(terminal.wrap(text, terminal.width(sys.stdout)))


def _table(header: Row, rows: Sequence[Row]) -> None:
    print("", *terminal.table(header, rows, terminal.width(sys.stdout)), sep="\n")


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _number(value: float) -> str:
    return "" if not value else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _flops(value: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.2f} {unit}FLOP"
    return f"{value:,.0f} FLOP"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
