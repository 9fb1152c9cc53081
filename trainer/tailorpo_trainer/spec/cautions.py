"""What a document may say and most likely should not, for `validate`, `render` and the status of a job. No torch."""

import re
from collections.abc import Iterator

from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.spec.pod_template import Template

_ACCELERATOR = re.compile(r"/(gpu|gpu\..+|mig-.+|tpu|npu|ascend.*|gaudi|neuron|neuroncore|neurondevice|i915|xe)$", re.I)
"""Of resources that device plug-ins offer: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`, `amd.com/gpu`, `google.com/tpu`,
`aws.amazon.com/neuron`, `habana.ai/gaudi`, `gpu.intel.com/i915`, …; not `rdma/hca` and the like."""

_STANDARD = ("cpu", "memory", "ephemeral-storage")


def accelerators(template: Template) -> int:
    """How many accelerators the limits of one worker's container give it. A part of a device (MIG) counts as one.

    Devices of `resourceClaims` are not counted: how many a claim brings is known only when it is allocated.
    """
    limits = (template.resources.limits if template.resources is not None else None) or {}
    return sum(_whole(amount) for name, amount in limits.items() if _ACCELERATOR.search(name))


def cautions(spec: Spec) -> Iterator[str]:
    """One sentence each, with the field."""
    yield from _shared_accelerators(spec)
    yield from _unknown_resources(spec.template)


def _shared_accelerators(spec: Spec) -> Iterator[str]:
    there, processes = accelerators(spec.template), spec.processes_per_worker
    if not there or spec.template.resource_claims or there == processes:
        return
    given = f"spec.template.resources.limits gives a worker {there} accelerator{'s' if there > 1 else ''}"
    if processes > there:
        yield (
            f"spec.processesPerWorker: {given}, and {processes} processes need one each: they would share it, which "
            f"most communication libraries refuse; use {there}"
        )
    else:
        what = "1 process uses" if processes == 1 else f"{processes} processes use"
        yield f"spec.processesPerWorker: {given}, and {what} one each: {there - processes} would be idle; use {there}"


def _unknown_resources(template: Template) -> Iterator[str]:
    """Kubernetes refuses pods with these."""
    resources = template.resources
    for field in ("limits", "requests"):
        for name in (getattr(resources, field) if resources is not None else None) or {}:
            if "/" not in name and name not in _STANDARD and not name.startswith("hugepages-"):
                yield (
                    f"spec.template.resources.{field}: Kubernetes knows no resource {name!r}, and refuses the pods; "
                    f"there are {', '.join(_STANDARD)}, hugepages-SIZE, and devices with a domain, such as "
                    "nvidia.com/gpu"
                )


def _whole(amount: int | str) -> int:
    """0 for an amount with a unit, which no device plug-in understands."""
    return int(amount) if isinstance(amount, int) or amount.isdecimal() else 0
