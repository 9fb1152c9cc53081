"""A job as YAML that means the same to our reader and to kubectl's."""

import re
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from tailorpo_trainer.spec.job import TailorPOJob

_SAFE = re.compile(r"[A-Za-z/](?:[\w .,@()/+-]|:(?=\S))*", re.ASCII)
_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
"""Words that YAML 1.1, and so kubectl, does not read as text."""


class _Representer(RoundTripRepresenter):
    """Puts a text in quotes if some reader could read it as another type."""

    def represent_text(self, value: str) -> ScalarNode:
        safe = _SAFE.fullmatch(value) and value == value.strip() and value.lower() not in _NOT_TEXT
        # Double quotes need no escape between single quotes, which keeps JSON within YAML readable.
        plain = '"' in value and value.isascii() and value.isprintable()
        style = None if safe else "'" if plain else '"'
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", value, style=style)
        return node


_Representer.add_representer(str, _Representer.represent_text)


def dump(job: TailorPOJob) -> str:
    """YAML of a resolved document: every default written out, nulls left out."""
    return dump_values(values(job))


def dump_values(value: Any) -> str:
    """YAML of plain values, for any reader."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 1 << 20  # a prompt is one line
    out = StringIO()
    yaml.dump(value, out)
    return out.getvalue()


def values(job: TailorPOJob) -> dict[str, Any]:
    """The job as plain values of JSON's types."""
    return job.model_dump(mode="json", by_alias=True, exclude_none=True)
