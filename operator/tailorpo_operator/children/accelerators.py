"""How many accelerators the pods of an attempt are given."""

import re

from tailorpo_trainer.spec.job import Spec

_ACCELERATOR = re.compile(r"/(gpu|gpu\..+|mig-.+|tpu|npu|ascend.*|gaudi|neuron|neuroncore|neurondevice|i915|xe)$", re.I)
"""Of resources that device plug-ins offer: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`, `amd.com/gpu`, `google.com/tpu`,
`aws.amazon.com/neuron`, `habana.ai/gaudi`, `gpu.intel.com/i915`, …; not `rdma/hca` and the like."""

MOST = 1_000_000
"""No cluster has more: a larger number is a mistake, and must not make a status invalid."""


def accelerators(spec: Spec) -> int:
    """Of all workers, by the limits of their containers. A part of a device (MIG) counts as one.

    Devices of `resourceClaims` are not counted: how many a claim brings is known only when it is allocated.
    """
    resources = spec.template.resources
    limits = (resources.limits if resources is not None else None) or {}
    each = sum(_whole(amount) for name, amount in limits.items() if _ACCELERATOR.search(name))
    return min(spec.workers * each, MOST)


def _whole(amount: int | str) -> int:
    """0 for an amount with a unit, which no device plug-in understands."""
    return int(amount) if isinstance(amount, int) or amount.isdecimal() else 0
