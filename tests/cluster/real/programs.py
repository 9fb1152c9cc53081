"""The programs of a node: what Go modules have, and runc and nft, which Debian has."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
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
        "kube-proxy",
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
    """Where the programs are: a folder of those that were built, and Debian's."""

    folder: Path
    runc: Path
    nft: Path

    @property
    def libraries(self) -> str:
        """The `LD_LIBRARY_PATH` of Debian's programs."""
        return f"{_libraries(self.runc)}:{_libraries(self.nft)}"

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def installed(report: Report = build.say) -> Installed:
    """Builds and fetches what the cache does not hold; raises UnfitError where Debian's cannot be had or do nothing."""
    folder = build.binaries(NODE_PROGRAMS, report)
    runc = _debian("runc", "runc", ["--version"], report)
    nft = _debian("nft", "nftables", ["list", "tables"], report)
    return Installed(folder, runc, nft)


def tool(name: str) -> str:
    """The path of a program of this machine; raises UnfitError without it."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise UnfitError(f"there is no `{name}` on this machine")
    return found


def _debian(program: str, package: str, test: Sequence[str], report: Report) -> Path:
    """This machine's, else Debian's out of its package, which is not installed."""
    own = shutil.which(program, path=SYSTEM_PATH)
    if own is not None:
        found = Path(own)
    else:
        cache = build.cache_folder()
        found = cache / package / "usr" / "sbin" / program
        cache.mkdir(parents=True, exist_ok=True)
        with build.alone(cache / f"{package}.lock", package, report):
            if not found.is_file():
                report(f"fetching Debian's {package}")
                with tempfile.TemporaryDirectory(prefix=f"{package}.", dir=cache) as scratch:
                    _unpack(package, Path(scratch), cache / package)
    environment = _plain() | {"LD_LIBRARY_PATH": _libraries(found)}
    command = [str(found), *test]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise UnfitError(f"{program} does not run on this machine: {error}") from error
    except subprocess.CalledProcessError as error:
        raise UnfitError(f"`{' '.join(command)}` fails on this machine: {error.stderr.strip()}") from error
    return found


def _libraries(program: Path) -> str:
    """Where those are that may have been unpacked beside it."""
    root = program.parent.parent.parent  # of sbin, of usr
    return ":".join(str(each) for part in ("lib", "usr/lib") for each in root.glob(f"{part}/*-linux-gnu"))


def _unpack(package: str, scratch: Path, target: Path) -> None:
    """Downloads a package, and what this machine lacks for it, and moves what is in them to target.

    All files of apt's stay in scratch.
    """
    for folder in ("lists/partial", "archives/partial", "content"):
        (scratch / folder).mkdir(parents=True)
    options = [
        f"--option=Dir::Cache={scratch}",
        f"--option=Dir::Cache::archives={scratch}/archives",
        f"--option=Dir::State::lists={scratch}/lists",
        "--option=APT::Sandbox::User=root",  # apt's own user may not write into scratch
    ]
    try:
        commands = [
            ["apt-get", *options, "update"],
            ["apt-get", *options, "--yes", "--no-install-recommends", "--download-only", "install", package],
        ]
        for command in commands:
            subprocess.run(command, env=_plain(), check=True, capture_output=True, text=True)
        for archive in scratch.glob("archives/*.deb"):
            unpack = ["dpkg-deb", "-x", str(archive), f"{scratch}/content"]
            subprocess.run(unpack, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UnfitError(f"there is no {package} on this machine, and no {error.filename} to fetch it") from error
    except subprocess.CalledProcessError as error:
        raise UnfitError(f"{' '.join(map(str, error.cmd))}: {error.stderr.strip()}") from error
    (scratch / "content").rename(target)


def _plain() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
