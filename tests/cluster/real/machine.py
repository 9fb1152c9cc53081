"""What a machine must have so that real nodes can run on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.control_plane import new_folder
from tests.cluster.real import cgroups
from tests.cluster.real.programs import SYSTEM_PATH, UnfitError, tool
from tests.cluster.watchdog import remove_cgroup

TOOLS = ("ip", "mount", "nsenter", "setpriv", "sleep", "unshare")
LAYERS = ("lower", "upper", "work", "all")


def check() -> None:
    """Raises UnfitError with the reason where no real node can run on this machine."""
    if sys.platform != "linux":
        raise UnfitError("nodes need Linux")
    if os.geteuid() != 0:
        raise UnfitError("nodes need root")
    for name in TOOLS:
        tool(name)
    folder = new_folder()
    try:
        cgroups.make(folder.name)
        _namespaces(folder)
    finally:
        for path in cgroups.paths(folder.name):
            remove_cgroup(str(path))
        shutil.rmtree(folder)


def _namespaces(folder: Path) -> None:
    """What a node does first: namespaces, mounts of its own, a pair of network devices."""
    for name in LAYERS:
        (folder / name).mkdir()
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    script = " && ".join(
        [
            f"mount -t overlay -o {options} overlay {folder}/all",
            "mount -t tmpfs tmpfs /run",
            "ip link add one type veth peer name two",
            "ip link add three type bridge",
        ]
    )
    isolated = [
        tool("unshare"),
        "--net",
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C"}
    done = subprocess.run([*isolated, "sh", "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UnfitError(f"namespaces, overlay mounts and network devices cannot all be had: {done.stderr.strip()}")
