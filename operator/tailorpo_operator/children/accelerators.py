"""How many accelerators the pods of an attempt are given."""

from tailorpo_trainer.spec import cautions
from tailorpo_trainer.spec.job import Spec

MOST = 1_000_000
"""No cluster has more: a larger number is a mistake, and must not make a status invalid."""


def accelerators(spec: Spec) -> int:
    """Of all workers, by the limits of their containers."""
    return min(spec.workers * cautions.accelerators(spec.template), MOST)
