"""An estimate as a person and as a program read it."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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


def as_json(found: "Estimate") -> str:
    """Schema version 1: keys may be added, none changes its meaning. Counts are rows, memory is bytes."""
    values: dict[str, Any] = {
        "schemaVersion": 1,
        "job": found.job,
        "model": {"name": found.model, "architecture": found.architecture},
        "method": found.method,
        "iterations": found.iterations,
        "imagesPerIteration": found.images,
        "evaluations": found.counts.evaluations,
        "updates": found.counts.updates,
        "work": [
            {
                "what": what,
                "purpose": purpose,
                "perIteration": _whole(found.counts.iteration.get((what, purpose), 0)),
                "perEvaluation": _whole(found.counts.evaluation.get((what, purpose), 0)),
                "run": _whole(rows),
                "flopsPerRow": _whole(found.flops[what, purpose]),
                "flopsRun": _whole(found.flops[what, purpose] * rows),
            }
            for (what, purpose), rows in found.counts.run.items()
        ],
        "flops": {name: _whole(value) for name, value in _totals(found).items()},
        "forwardEquivalentsPerImage": round(found.forward_equivalents, 3),
        "memoryBytes": [{_camel(name): value for name, value in asdict(item).items()} for item in found.memory],
        "checkpointBytes": found.checkpoint_bytes,
        "adapterBytes": found.adapter_bytes,
        "storageBytes": found.checkpoint_bytes * found.keep,
        "notes": list(found.notes),
    }
    return json.dumps(values, indent=2)


def show(found: "Estimate") -> None:
    """Print tables: drawn where standard output is a terminal, else aligned text."""
    print(
        f"{found.job}: {found.method} on {found.architecture}, {found.iterations:,} iterations of "
        f"{found.images:,} images and {found.counts.evaluations:,} evaluations"
    )
    _table(("", "per iteration", "per evaluation", "whole run", "FLOPs of the run"), list(_work(found)))
    print(
        f"\nA guided prediction counts two forwards. The denoiser's work for one training image equals "
        f"{found.forward_equivalents:.1f} of its forwards."
    )
    _table(("memory", *(item.precision for item in found.memory)), list(_memory(found)))
    print(f"\ncheckpoint: {_bytes(found.checkpoint_bytes)}, {found.keep} kept; adapter: {_bytes(found.adapter_bytes)}")
    for line in [*_hints(found), *found.notes]:
        print(line)


def _work(found: "Estimate") -> Iterator[Row]:
    counts, last = found.counts, ""
    for (what, purpose), rows in sorted(counts.run.items(), key=lambda item: list(TITLES).index(item[0][0])):
        if what != last:
            yield (TITLES[what], "", "", "", "")
            last = what
        once, evaluation = counts.iteration.get((what, purpose), 0), counts.evaluation.get((what, purpose), 0)
        flops = found.flops[what, purpose]
        yield (
            f"  {PURPOSES.get(purpose, purpose)}",
            _number(once),
            _number(evaluation),
            _number(rows),
            _flops(flops * rows) if flops else "not counted",
        )
    totals = _totals(found)
    yield (
        "FLOPs",
        *(_flops(totals[name]) for name in ("perIteration", "perEvaluation", "run")),
        _flops(totals["run"]),
    )


def _totals(found: "Estimate") -> dict[str, float]:
    parts = {
        "perIteration": found.counts.iteration,
        "perEvaluation": found.counts.evaluation,
        "run": found.counts.run,
    }
    return {name: sum(found.flops[key] * rows for key, rows in work.items()) for name, work in parts.items()}


def _memory(found: "Estimate") -> Iterator[Row]:
    lines = {
        "weights": "weights",
        "state": "adapter, gradient, optimiser",
        "update": f"update of {found.batches.update} rows",
        "update_checkpointed": "  with gradientCheckpointing",
        "sampling": f"sampling of {found.batches.sampling} rows",
        "decoding": f"decoding of {found.batches.decoding} pictures",
        "guidance": "push up the reward's gradient",
        "peak": "peak, about",
    }
    for name, title in lines.items():
        values = [getattr(item, name) for item in found.memory]
        if any(values):
            yield (title, *(_bytes(value) for value in values))


def _hints(found: "Estimate") -> Iterator[str]:
    """What lowers the largest of the phases."""
    most = found.memory[-1]
    update = most.update_checkpointed if found.checkpointing else most.update
    phases = {
        "update": update,
        "sampling": most.sampling,
        "decoding": most.decoding,
        "guidance": most.guidance,
    }
    largest = max(phases, key=lambda name: phases[name])
    hints = {
        "update": ["spec.training.microBatchSize"] + ([] if found.checkpointing else ["gradientCheckpointing: true"]),
        "sampling": ["spec.training.samplingBatchSize"],
        "decoding": ["spec.training.decodeBatchSize", "vaeSlicing: true"],
        "guidance": ["spec.training.samplingBatchSize", "spec.method.rewardGuidance.gradient: detached"],
    }
    yield (
        f"To lower the peak ({largest}): {', or '.join(hints[largest])}. Nothing of the result changes by "
        + ("smaller batches." if largest != "guidance" else "smaller batches; `detached` is another push.")
    )


def _table(heads: Row, rows: Sequence[Row]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*(heads[:1]), box=None, pad_edge=False, header_style="bold")
        for head in heads[1:]:
            table.add_column(head, justify="right")
        for row in rows:
            table.add_row(*row)
        print()
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    print()
    for row in (heads, *rows):
        first, *others = (
            cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


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
