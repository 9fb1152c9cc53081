"""The first process of a node, a program of its own: what it starts ends with it, in one moment, as at a power cut.

Its argument is a JSON file that node.py wrote. It starts in namespaces of the node's own, with the network coming.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOCKET = "/run/containerd/containerd.sock"
SECONDS = 60.0


def main() -> None:
    node: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    folder, programs, logs = Path(node["folder"]), Path(node["programs"]), Path(node["logs"])
    socket.sethostname(node["name"])
    os.environ.update({"PATH": node["path"], "LD_LIBRARY_PATH": node["libraries"]})
    os.environ.update({"HOME": str(folder), "TMPDIR": f"{folder}/temporary"})
    mount_own(folder, node["sysctls"])
    wait(has_route, "the node has a network")

    containerd = start([f"{programs}/containerd", f"--config={folder}/containerd.toml"], logs / "containerd.log")
    wait(lambda: Path(SOCKET).is_socket(), "containerd listens")
    for image in node["images"]:
        call(f"{programs}/ctr", f"--address={SOCKET}", "--namespace=k8s.io", "images", "import", image)
    kubelet = start([f"{programs}/kubelet", *node["kubelet"]], logs / "kubelet.log")
    proxy = start([f"{programs}/kube-proxy", f"--config={folder}/kube-proxy.json"], logs / "kube-proxy.log")
    reap({containerd: "containerd", kubelet: "the kubelet", proxy: "kube-proxy"})


def mount_own(folder: Path, sysctls: dict[str, str]) -> None:
    """Gives the node its own of what programs write to whatever they are told."""
    call("mount", "--make-rshared", "/")  # as the kubelet expects it; nobody outside has a share in it
    for place in ("/run", "/var/log"):
        call("mount", "-t", "tmpfs", "tmpfs", place)
    layers = f"lowerdir=/var/lib,upperdir={folder}/var-lib,workdir={folder}/var-lib-work"
    call("mount", "-t", "overlay", "-o", layers, "overlay", "/var/lib")
    for name, value in sysctls.items():
        held = folder / name.replace("/", ".")
        held.write_text(value + "\n")
        call("mount", "--bind", str(held), f"/proc/sys/{name}")


def has_route() -> bool:
    return any(line.split()[1] == "00000000" for line in Path("/proc/net/route").read_text().splitlines()[1:])


def wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"not within {SECONDS:.0f} s: {what}")
        time.sleep(0.02)


def call(*command: str) -> None:
    subprocess.run(command, check=True)


def start(command: list[str], log: Path) -> int:
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT).pid


def reap(lasting: dict[int, str]) -> None:
    """Containers whose starters are gone are this process' children; what should last takes the node with it."""
    while True:
        pid, status = os.wait()
        if pid in lasting:
            sys.exit(f"{lasting[pid]} ended with code {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
