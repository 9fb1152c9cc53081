"""The chart's rules with short times, so that a test sees alerts fire within seconds."""

import re
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from tests.monitoring.rules import FILES

THRESHOLD = re.compile(r"[0-9.]+$")
"""The number at the end of an alert's expression; the chart replaces it too."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def write(folder: Path, factor: float, thresholds: Mapping[str, float], left_out: frozenset[str]) -> list[Path]:
    """Copies the files of rules with all spans divided by `factor`; returns the copies.

    thresholds: other ones by alert. left_out: alerts that are removed.
    """
    yaml, copies = YAML(typ="safe", pure=True), []
    for path in FILES:
        document = yaml.load(path)
        for group in document["groups"]:
            group["rules"] = [rule for rule in group["rules"] if rule.get("alert") not in left_out]
            for rule in group["rules"]:
                rule["expr"] = re.sub(
                    r"\[(\d+)([smhd])\]",
                    lambda span: f"[{max(1000, round(1000 * int(span[1]) * UNITS[span[2]] / factor))}ms]",
                    rule["expr"],
                )
                if "for" in rule:
                    span = re.fullmatch(r"(\d+)([smhd])", rule["for"])
                    assert span is not None
                    rule["for"] = f"{round(1000 * int(span[1]) * UNITS[span[2]] / factor)}ms"
                if (other := thresholds.get(rule.get("alert", ""))) is not None:
                    rule["expr"] = THRESHOLD.sub(f"{other:g}", rule["expr"])
        copies.append(folder / path.name)
        with copies[-1].open("w") as copy:
            yaml.dump(document, copy)
    return copies
