"""The time and the versions of software that a written file records. No torch."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("tailorpo", "torch", "diffusers", "peft", "transformers", "safetensors", "numpy")
"""The packages that determine the numbers of a run, besides Python itself."""


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
    """The packages that are installed, each with its version."""
    return {package: number for package in packages if (number := installed(package)) is not None}


def software() -> dict[str, str]:
    """The versions of Python and of all packages that determine the numbers of a run."""
    return {"python": platform.python_version(), **versions()}
