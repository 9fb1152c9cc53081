"""When something was written, and by which software. No torch."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("tailorpo", "torch", "diffusers", "peft", "transformers", "safetensors", "numpy")
"""What decides the numbers of a run, beside Python itself."""


def now() -> str:
    """The time, in seconds of UTC (RFC 3339)."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@cache
def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Those of the packages that are installed, each with its version."""
    return {package: found for package in packages if (found := installed(package)) is not None}


def software() -> dict[str, str]:
    """What is installed of all that decides the numbers of a run."""
    return {"python": platform.python_version(), **versions()}
