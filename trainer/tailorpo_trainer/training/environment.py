"""`environment.json`: what a result depends on besides the document, which is software, machine and processes."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer.versions import PACKAGES, versions


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions and hardware, as JSON values."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": str(device),
        "accelerator": accelerator,
        "packages": versions((*PACKAGES, "accelerate")),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
