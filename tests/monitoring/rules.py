"""The files of rules in the chart, as tests read them."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILES = sorted((Path(__file__).parents[2] / "charts" / "tailorpo" / "files" / "rules").glob("*.yaml"))

Fields = dict[str, Any]


def rules() -> list[Fields]:
    """All rules of all files."""
    return [rule for path in FILES for group in YAML(typ="safe").load(path)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, Fields]:
    """The alerts by their names."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}
