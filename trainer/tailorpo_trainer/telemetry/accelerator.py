"""Memory, utilisation and peak speed of this process' accelerator, read at the time of a scrape."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tailorpo_trainer import models
from tailorpo_trainer.spec.job import TrainingSpec

MEMORY = {"allocated": "memory_allocated", "reserved": "memory_reserved", "peak": "max_memory_allocated"}
"""Functions of torch's module of a device, by kind."""

PEAK_FLOPS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 80GB HBM3", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("A100", 312e12),
    ("A30", 165e12),
    ("A40", 149.7e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100 SXM2", 125e12),
    ("V100 PCIE", 112e12),
    ("T4", 65e12),
)
"""Peak of matrix products in bf16 or fp16 without sparsity, in FLOP/s, by words of its name: the first that fits.

Source: NVIDIA's data sheets of these products; where one gives the value with sparsity only, half of it.
"""


class Accelerator(Collector):
    """Reads figures that the host keeps: nothing waits for the device. What torch cannot tell is absent.

    Args:
        device: of this process.
        labels: names and values of labels that every series gets.
        module: torch's module for this kind of device, such as `torch.cuda`.
        dtype: in which the denoiser computes.
    """

    def __init__(self, device: torch.device, labels: dict[str, str], module: Any, dtype: torch.dtype) -> None:
        self._device, self._labels, self._module = device, labels, module
        properties = self._call("get_device_properties")
        total = getattr(properties, "total_memory", None)
        self._limit = None if total is None else float(total)
        name = str(getattr(properties, "name", ""))
        self.peak_flops = peak_flops(name) if dtype in (torch.bfloat16, torch.float16) else None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        names, values = list(self._labels), list(self._labels.values())
        memory = GaugeMetricFamily(
            "tailorpo_accelerator_memory_bytes",
            "Memory that torch holds on this process' accelerator",
            labels=[*names, "kind"],
        )
        for kind, function in MEMORY.items():
            if (used := self._call(function)) is not None:
                memory.add_metric([*values, kind], float(used))
        limit = GaugeMetricFamily("tailorpo_accelerator_memory_limit_bytes", "Memory that it has", labels=names)
        if self._limit is not None:
            limit.add_metric(values, self._limit)
        utilisation = GaugeMetricFamily(
            "tailorpo_accelerator_utilization_ratio",
            "Share of the time in which it computed, as its driver reports it",
            labels=names,
        )
        if (percent := self._call("utilization")) is not None:
            utilisation.add_metric(values, percent / 100)
        return memory, limit, utilisation

    def _call(self, function: str) -> Any:
        """None if the module has no such function or the driver does not answer: a scrape must not fail."""
        try:
            return getattr(self._module, function)(self._device)
        except Exception:  # drivers raise many types
            return None


def find_accelerator(run: TrainingSpec, labels: dict[str, str]) -> Accelerator | None:
    """This process' accelerator; None on a CPU."""
    device = models.pick_device()
    if device.type == "cpu":
        return None
    dtype = models.pick_dtype(run.training.precision, device)
    return Accelerator(device, labels, torch.get_device_module(device), dtype)


def peak_flops(name: str) -> float | None:
    """The peak of a device of that name; None if it is not known, and for a part (MIG) of a device."""
    words = set(re.findall(r"[A-Za-z0-9]+", name))
    found = (peak for known, peak in PEAK_FLOPS if words.issuperset(known.split()))
    return None if "MIG" in words else next(found, None)
