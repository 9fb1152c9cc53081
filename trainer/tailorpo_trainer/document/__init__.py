"""Read a `TailorPOJob` from YAML, say everything that is wrong with it at once, and write it back.

`source` turns text into values that know their lines, `overrides` applies `--set`, `checks` judges the
values, `explain` puts what pydantic found into words, `writing` is the way back.
"""

from tailorpo_trainer.document.dump import dump, dump_values, values
from tailorpo_trainer.document.problems import DocumentError, Problem
from tailorpo_trainer.document.validation import parse, read, read_all

__all__ = ["DocumentError", "Problem", "dump", "dump_values", "parse", "read", "read_all", "values"]
