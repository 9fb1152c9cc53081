"""The programs of a node: what Go modules have, and runc, which Debian has."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import build
from tests.cluster.build import Report

NODE_PROGRAMS = build.Programs(
    what="the programs of a node of Kubernetes",
    module=Path(__file__).parent / "go",
    names=(
        "bridge",
        "containerd",
        "containerd-shim-runc-v2",
        "coredns",
        "ctr",
        "host-local",
        "kubelet",
        "loopback",
        "pause",
    ),
    tags=("no_aufs", "no_btrfs", "no_devmapper", "no_zfs"),
)
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnfitError(Exception):
    """No real node can run on this machine; the text says why."""


@dataclass(frozen=True)
class Installed:
    """Where the programs are: a folder of those that were built, and runc."""

    folder: Path
    runc: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def installed(report: Report = build.say) -> Installed:
    """Builds and fetches what the cache does not hold; raises UnfitError where runc cannot be had."""
    return Installed(folder=build.binaries(NODE_PROGRAMS, report), runc=_runc(report))


def tool(name: str) -> str:
    """The path of a program of this machine; raises UnfitError without it."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise UnfitError(f"there is no `{name}` on this machine")
    return found


def _runc(report: Report) -> Path:
    """This machine's runc, else Debian's out of its package, which is not installed."""
    if (own := shutil.which("runc", path=SYSTEM_PATH)) is not None:
        return Path(own)
    cache = build.cache_folder()
    ready = cache / "runc" / "usr" / "sbin" / "runc"
    cache.mkdir(parents=True, exist_ok=True)
    with build.alone(cache / "runc.lock", "runc", report):
        if not ready.is_file():
            report("fetching Debian's runc")
            with tempfile.TemporaryDirectory(prefix="runc.", dir=cache) as scratch:
                _unpack("runc", Path(scratch), cache / "runc")
    try:
        subprocess.run([ready, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnfitError(f"Debian's runc does not run here: {error}") from error
    return ready


def _unpack(package: str, scratch: Path, target: Path) -> None:
    """Downloads a package with apt, whose files all stay in scratch, and moves what is in it to target."""
    for folder in ("lists/partial", "archives/partial", "content"):
        (scratch / folder).mkdir(parents=True)
    options = [
        f"--option=Dir::Cache={scratch}",
        f"--option=Dir::Cache::archives={scratch}/archives",
        f"--option=Dir::State::lists={scratch}/lists",
        "--option=APT::Sandbox::User=root",  # apt's own user may not write into scratch
    ]
    try:
        for command in (["apt-get", *options, "update"], ["apt-get", *options, "download", package]):
            subprocess.run(command, cwd=scratch, env=_plain(), check=True, capture_output=True, text=True)
        (archive,) = scratch.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, scratch / "content"], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UnfitError(f"there is no {package} on this machine, and no {error.filename} to fetch it") from error
    except subprocess.CalledProcessError as error:
        raise UnfitError(f"{' '.join(map(str, error.cmd))}: {error.stderr.strip()}") from error
    (scratch / "content").rename(target)


def _plain() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
