"""Read a `TailorPOJob` from YAML, report all its errors at once, and write it back.

`source` turns text into values with line numbers, `overrides` applies `--set`, `validation` checks the values,
`messages` turns errors of pydantic into sentences, `dump` writes YAML.
"""

from tailorpo_trainer.document.dump import dump, dump_values, values
from tailorpo_trainer.document.problems import DocumentError, Problem
from tailorpo_trainer.document.validation import parse, read, read_all

__all__ = ["DocumentError", "Problem", "dump", "dump_values", "parse", "read", "read_all", "values"]
