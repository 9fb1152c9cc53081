"""Stops a cluster whose owner has ended, even if it was killed: a program of its own, started by processes.py.

Its arguments are the folder to remove, and cgroups to remove; its input names, a line each, a process that started
(+pid) or was stopped (-pid). The input ends when the owner closes it or dies.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

CGROUP_SECONDS = 30.0  # until the processes in a cgroup are gone that were killed


def main() -> None:
    alive = set[int]()
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            alive.add(pid)
        else:
            alive.discard(pid)
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    folder, *cgroups = sys.argv[1:]
    for cgroup in cgroups:
        remove_cgroup(cgroup)
    shutil.rmtree(folder, ignore_errors=True)


def remove_cgroup(path: str) -> None:
    """Removes a cgroup with all below it, once the last process has left."""
    deadline = time.monotonic() + CGROUP_SECONDS
    while os.path.isdir(path) and time.monotonic() < deadline:
        for below, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(below)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
