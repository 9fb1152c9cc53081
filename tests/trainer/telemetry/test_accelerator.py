"""What is told of an accelerator, by a stand-in for torch's module of a device: tests run on CPUs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tailorpo_trainer.document import parse
from tailorpo_trainer.spec.progress import Progress
from tailorpo_trainer.telemetry.accelerator import Accelerator, find_accelerator, peak_flops
from tailorpo_trainer.telemetry.prometheus import Metrics
from tests.metrics_page import ACCELERATOR, IDENTITY, RUN, written

DEVICE = torch.device("cuda", 3)
LABELS = {"job_namespace": "research", "job_name": "test"}


def stand_in(**functions: Any) -> SimpleNamespace:
    """As `torch.cuda`: every function is given the device."""

    def tells(value: Any) -> Any:
        def function(device: torch.device) -> Any:
            assert device == DEVICE
            if isinstance(value, Exception):
                raise value
            return value

        return function

    given = {
        "get_device_properties": SimpleNamespace(total_memory=143_771_000_000, name="NVIDIA H200"),
        "memory_allocated": 10,
        "memory_reserved": 30,
        "max_memory_allocated": 20,
        "utilization": 87,
    }
    return SimpleNamespace(**{name: tells(value) for name, value in (given | functions).items()})


def figures(accelerator: Accelerator, processes: int = 1) -> dict[str, Any]:
    """All that is served about it, by name and kind; and each is as the page has it."""
    metrics = Metrics(Progress(name="test", namespace="research"), accelerator=accelerator, processes=processes)
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        if (name := written(family)) in ACCELERATOR:
            assert family.type == RUN[name].kind
            for sample in family.samples:
                assert sample.labels.items() >= LABELS.items()
                assert sample.labels.keys() == RUN[name].labels | IDENTITY
                found["/".join([name.removeprefix("tailorpo_"), *filter(None, [sample.labels.get("kind")])])] = (
                    sample.value
                )
    return found


def test_memory_utilisation_and_peak() -> None:
    accelerator = Accelerator(DEVICE, LABELS, stand_in(), torch.bfloat16)
    assert figures(accelerator, processes=4) == {
        "accelerator_memory_bytes/allocated": 10,
        "accelerator_memory_bytes/reserved": 30,
        "accelerator_memory_bytes/peak": 20,
        "accelerator_memory_limit_bytes": 143_771_000_000,
        "accelerator_utilization_ratio": 0.87,
        "peak_flops": 4 * 989e12,
    }


def test_what_a_device_does_not_tell_is_absent() -> None:
    module = stand_in(utilization=ModuleNotFoundError("pynvml"), memory_reserved=RuntimeError("not supported"))
    del module.max_memory_allocated
    accelerator = Accelerator(DEVICE, LABELS, module, torch.float32)
    assert figures(accelerator) == {
        "accelerator_memory_bytes/allocated": 10,
        "accelerator_memory_limit_bytes": 143_771_000_000,
    }
    silent = Accelerator(DEVICE, LABELS, SimpleNamespace(), torch.bfloat16)
    assert figures(silent) == {}


def test_a_cpu_is_no_accelerator(document: Any) -> None:
    if not torch.accelerator.is_available():
        assert find_accelerator(parse(document()).spec, LABELS) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA A10G", None),  # another one than the A10
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_the_peak_of_known_devices(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
