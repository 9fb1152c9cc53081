"""Control groups of our own, in version 1, 2 or both at once, whatever this machine has.

Version 2 alone has not been tried yet.
"""

from pathlib import Path

from tests.cluster.real.programs import UnfitError

CONTROLLERS = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}  # what a kubelet asks for, where there is one


def hierarchies() -> list[Path]:
    """Where cgroup file systems are mounted; version 1 has one for each controller or few of them."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(place) for _, place, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def paths(name: str) -> list[Path]:
    """All places where the cgroup `name` may be found."""
    return [mount / name for mount in hierarchies()]


def make(name: str) -> None:
    """Makes the cgroup `name`, as in "tests/node-0", in every hierarchy, with all controllers."""
    if not paths(name):
        raise UnfitError("no cgroup file system is mounted")
    try:
        for mount in hierarchies():
            parent = mount
            for part in Path(name).parts:
                _pass_on(parent)
                _make(parent / part)
                parent = parent / part
    except OSError as error:
        raise UnfitError(f"no cgroup can be made: {error}") from error


def _make(path: Path) -> None:
    path.mkdir(exist_ok=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):  # in version 1 a new one has none and takes no process
        inherited = path.parent / setting
        if (path / "tasks").exists() and inherited.exists():
            (path / setting).write_text(inherited.read_text())


def _pass_on(path: Path) -> None:
    """In version 2 a cgroup gives its children the controllers that it is told to give."""
    switch = path / "cgroup.subtree_control"
    if switch.exists():
        available = CONTROLLERS & set((path / "cgroup.controllers").read_text().split())
        for each in sorted(available - set(switch.read_text().split())):
            switch.write_text(f"+{each}")
