"""Paths of results, page and pictures, and the format of results: JSON lines, one for each trial."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""A trial's fields, `key`, `iterations`, `flops_per_iteration`, `error`, `seconds`, and `evaluations` in order."""

RESULTS = Path(__file__).with_name("results.json")
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "methods-compared.md"
PLOT = DOCS / "images" / "methods-compared.png"
PICTURES = DOCS / "images" / "methods-pictures.png"


def read(path: Path) -> list[Result]:
    """Trials of `trials.jsonl` or `results.json`, the last of each key; an incomplete line is skipped."""
    found: dict[str, Result] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            result = json.loads(line.strip().removesuffix(","))
        except ValueError:
            continue  # an incomplete line, or a bracket of the list
        if isinstance(result, dict):
            found[result["key"]] = result
    return list(found.values())


def append(result: Result, path: Path) -> None:
    """Append a trial to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")


def write(results: Iterable[Result], path: Path) -> None:
    """Write all trials as one JSON list, one on each line."""
    lines = ",\n".join(json.dumps(result, separators=(",", ":")) for result in results)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
