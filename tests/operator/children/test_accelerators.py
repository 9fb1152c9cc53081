"""Which of a pod's resources are accelerators."""

from typing import Any

import pytest

from tailorpo_operator.children.accelerators import MOST, accelerators
from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.spec.pod_template import Resources, Template
from tests.operator.stories import job


def spec(limits: dict[str, Any] | None, workers: int = 2) -> Spec:
    resources = None if limits is None else Resources(limits=limits)
    return job(workers=workers).spec.model_copy(update={"template": Template(resources=resources)})


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        (None, 0),
        ({}, 0),
        ({"nvidia.com/gpu": 4, "memory": "16Gi", "cpu": 8}, 4),
        ({"amd.com/gpu": "2"}, 2),
        ({"nvidia.com/mig-1g.10gb": 3}, 3),
        ({"google.com/tpu": 8}, 8),
        ({"aws.amazon.com/neuroncore": 2}, 2),
        ({"habana.ai/gaudi": 8}, 8),
        ({"gpu.intel.com/i915": 1, "gpu.intel.com/memory.max": 16}, 1),
        ({"rdma/hca": 1, "vpc.amazonaws.com/efa": 4, "example.com/pixels": 5}, 0),
        ({"nvidia.com/gpu": "1k"}, 0),
    ],
)
def test_accelerators_of_two_workers(limits: dict[str, Any] | None, count: int) -> None:
    assert accelerators(spec(limits)) == 2 * count


def test_an_impossible_number_is_bounded() -> None:
    assert accelerators(spec({"nvidia.com/gpu": 2**62})) == MOST
