"""Stops a control plane whose owner is gone, however it went: a program of its own, started by processes.py.

Its argument is the folder to remove; its input names, a line each, a process that started (+pid) or was stopped
(-pid). The input ends when the owner closes it or dies.
"""

import contextlib
import os
import shutil
import signal
import sys


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
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
