"""Many jobs at once: `python -m benchmarks.scale --jobs 1000`, on a real control plane of the tests.

The floor is the same number of plain Indexed Jobs, made directly; then the same as TailorPOJobs with the operator.
Both until all children exist: Services, Jobs, pods. Pods have no node, and no scheduler looks at them. Each on a
control plane of its own, one after the other on the same machine. Afterwards the operator is watched while all jobs
wait, when it is started again, and while all jobs run and tell how far they are.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from benchmarks import crowd
from tailorpo_operator import api as names
from tailorpo_operator import connection, crd, naming
from tailorpo_operator.limits import RateLimit
from tailorpo_operator.wire import Wire
from tests.cluster.control_plane import ControlPlane, control_plane

ROOT = Path(__file__).parents[1]
NAMESPACES = tuple(f"team-{number}" for number in range(20))
"""Kubernetes' own Endpoints controllers look at all pods of a namespace for each Service: nobody puts all into one."""
WORKERS = 2
CLIENTS = 32
NOBODY = "nobody"  # a scheduler that there is not
IDLE = 60.0
"""Seconds over which an operator is watched whose jobs wait for nodes, and one whose jobs run."""
ALONE = 20
"""Jobs that are applied one by one."""

Tree = dict[str, Any]


def named(number: int) -> Tree:
    """Name and namespace of a job."""
    return {"name": f"job-{number}", "namespace": NAMESPACES[number % len(NAMESPACES)]}


def plain(number: int) -> Tree:
    """A Job as each attempt is one, with as little in it as can be."""
    container = {"name": "trainer", "image": "example.invalid/trainer:1"}
    template = {"spec": {"restartPolicy": "Never", "schedulerName": NOBODY, "containers": [container]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": named(number),
        "spec": {
            "completionMode": "Indexed",
            "completions": WORKERS,
            "parallelism": WORKERS,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": template,
        },
    }


def ours(number: int) -> Tree:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TailorPOJob",
        "metadata": named(number),
        "spec": {
            "prompts": {"builtin": "animals"},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo"},
            "checkpoint": {"storage": f"s3://models/job-{number}"},
            "workers": WORKERS,
            "scheduling": {"schedulerName": NOBODY},
        },
    }


PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"


class Operator:
    """The operator as a process, and what it costs."""

    def __init__(self, user: Path, log: Path) -> None:
        command = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"]
        self._path, self._start = log, log.stat().st_size if log.exists() else 0
        self._log = log.open("ab")
        options = ["--host=127.0.0.1", "--port=0", "--requests-per-second=1000"]
        self.process = subprocess.Popen([*command, "operator", f"--kubeconfig={user}", *options], stderr=self._log)

    @property
    def port(self) -> int | None:
        """Where it serves its metrics, once it does."""
        found = re.search(r"on port (\d+)", self._path.read_bytes()[self._start :].decode())
        return int(found[1]) if found else None

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return cpu_of(self.process.pid)

    @property
    def rss(self) -> float:
        """MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


async def count(wire: Wire, path: str) -> int:
    """How many objects there are."""
    page = await wire.request("list", path, query={"limit": "1"})
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def path_of(tree: Tree) -> str:
    """Where it is made."""
    return f"/apis/{tree['apiVersion']}/namespaces/{tree['metadata']['namespace']}/{tree['kind'].lower()}s"


async def create(wire: Wire, made: Iterable[Tree]) -> None:
    await crowd.by_many((wire.request("create", path_of(tree), tree) for tree in made), CLIENTS)


async def until_there(wire: Wire, path: str, total: int) -> None:
    while await count(wire, path) < total:
        await asyncio.sleep(0.2)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[ControlPlane, Path]]:
    """A control plane with the definition and the operator's rights."""
    with control_plane(logs=folder) as plane:
        kubectl = plane.kubectl("tailorpo-system")
        for name in NAMESPACES:
            kubectl("create", "namespace", name)
        kubectl.apply(crd.definition())
        for name in ("namespace", "rbac"):
            kubectl("apply", "--server-side", f"--filename={ROOT / 'manifests' / name}.yaml")
        for name in NAMESPACES:
            kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
        yield plane, plane.service_account("tailorpo-system", "tailorpo-operator")


async def _nothing() -> None:
    """Its credentials last."""


@asynccontextmanager
async def administrator(plane: ControlPlane) -> AsyncIterator[Wire]:
    """Requests without a limit."""
    async with ApiClient(await connection.load(plane.kubeconfig, None)) as client:
        client.rest_client.maxsize = 2 * CLIENTS
        yield Wire(client, RateLimit(1e6, 1_000_000), _nothing)


@dataclass(frozen=True)
class Found:
    """Of one number of jobs. Seconds, MB, CPU seconds a second, and the operator's writes.

    Attributes:
        cost: CPU seconds of each server and the operator until all children exist; floor_cost: the same of the floor.
        early, late: writes a job until all children exist, and until nothing is left to say of them.
        polled: while all jobs run and tell of progress: CPU, and status writes a second.
    """

    jobs: int
    floor: float
    floor_cost: dict[str, float]
    ours: float
    cost: dict[str, float]
    rss: float
    early: float
    late: float
    idle_cpu: float
    idle_rss: float
    restart: float
    restart_writes: int
    alone: tuple[float, ...]
    polled: tuple[float, float]
    polled_rss: float


def cpu_of(pid: int) -> float:
    """Seconds of CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(plane: ControlPlane, operator: Operator | None = None) -> dict[str, float]:
    found = {name: cpu_of(server.pid) for name, server in plane.servers.items()}
    return found | ({} if operator is None else {"operator": operator.cpu})


def less(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


async def measure_floor(plane: ControlPlane, jobs: int) -> tuple[float, dict[str, float]]:
    async with administrator(plane) as wire:
        begun, before = time.monotonic(), cost(plane)
        await create(wire, [plain(number) for number in range(jobs)])
        await until_there(wire, PODS, WORKERS * jobs)
        return time.monotonic() - begun, less(cost(plane), before)


def writes(plane: ControlPlane, mark: int) -> Counter[str]:
    """The operator's, by resource."""
    requests = plane.audit.since(mark)
    return Counter(each.resource for each in requests if each.writes and "tailorpo-operator" in each.user)


async def quiet(plane: ControlPlane, operator: Operator) -> None:
    """Until the operator has nothing to do any more."""
    last = -1.0
    while operator.cpu - last > 0.05:
        last = operator.cpu
        await asyncio.sleep(2)


async def apply_alone(wire: Wire, number: int) -> float:
    """Seconds from a job's creation to its pods'."""
    begun = time.monotonic()
    tree, query = ours(number), {"labelSelector": f"{naming.JOB}=job-{number}"}
    await wire.request("create", path_of(tree), tree)
    pods = f"/api/v1/namespaces/{tree['metadata']['namespace']}/pods"
    while len((await wire.request("list", pods, query=query))["items"]) < WORKERS:
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def reconciled(operator: Operator, jobs: int) -> None:
    """Until an operator that was just started has looked at all jobs."""
    pattern = re.compile(r"^tailorpo_operator_reconcile_seconds_count (\S+)$", re.MULTILINE)
    async with aiohttp.ClientSession() as session:
        while True:
            if (port := operator.port) is not None:
                async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                    found = pattern.search(await answer.text())
                    if found is not None and float(found[1]) >= jobs:
                        return
            await asyncio.sleep(0.2)


async def watched(operator: Operator) -> float:
    """The operator's CPU seconds a second."""
    before = operator.cpu
    await asyncio.sleep(IDLE)
    return (operator.cpu - before) / IDLE


async def measure_ours(
    plane: ControlPlane, user: Path, jobs: int, floor: tuple[float, dict[str, float]], log: Path
) -> Found:
    async with administrator(plane) as wire:
        operator = Operator(user, log)
        await asyncio.sleep(8)  # it has started, and does nothing
        services = await count(wire, SERVICES)
        mark, before, begun = plane.audit.mark(), cost(plane, operator), time.monotonic()
        await create(wire, [ours(number) for number in range(jobs)])
        await until_there(wire, PODS, WORKERS * jobs)
        await until_there(wire, SERVICES, services + jobs)
        seconds, used, rss = time.monotonic() - begun, less(cost(plane, operator), before), operator.rss
        early = sum(writes(plane, mark).values()) / jobs
        await quiet(plane, operator)
        late = sum(writes(plane, mark).values()) / jobs
        print(f"{jobs} TailorPOJobs: {seconds:.1f} s", file=sys.stderr, flush=True)
        alone = [await apply_alone(wire, jobs + number) for number in range(ALONE)]
        total = jobs + ALONE
        await quiet(plane, operator)
        idle, idle_rss = await watched(operator), operator.rss
        operator.stop()
        mark, begun = plane.audit.mark(), time.monotonic()
        operator = Operator(user, log)
        await reconciled(operator, total)
        restart = time.monotonic() - begun
        await quiet(plane, operator)
        again = writes(plane, mark)
        pods, _ = await wire.all(PODS)
        await crowd.run(wire, pods)
        with crowd.answering():
            await asyncio.sleep(IDLE)  # each is found to run, and is asked for the first time
            mark = plane.audit.mark()
            polled = await watched(operator), sum(writes(plane, mark).values()) / IDLE
            polled_rss = operator.rss
        operator.stop()
    return Found(
        jobs=jobs,
        floor=floor[0],
        floor_cost=floor[1],
        ours=seconds,
        cost=used,
        rss=rss,
        early=early,
        late=late,
        idle_cpu=idle,
        idle_rss=idle_rss,
        restart=restart,
        restart_writes=sum(again.values()),
        alone=tuple(alone),
        polled=polled,
        polled_rss=polled_rss,
    )


def measure(jobs: int) -> Found:
    """The floor, then ours, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "floor").mkdir()
        (work / "ours").mkdir()
        with cluster(work / "floor") as (plane, _):
            floor = asyncio.run(measure_floor(plane, jobs))
        print(f"{jobs} plain Jobs: {floor[0]:.1f} s", file=sys.stderr, flush=True)
        with cluster(work / "ours") as (plane, user):
            return asyncio.run(measure_ours(plane, user, jobs, floor, work / "operator.log"))


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def markdown(all_found: Sequence[Found]) -> str:
    rows = [
        ("plain Indexed Jobs, until all pods exist", "s", lambda each: f"{each.floor:.1f}"),
        ("TailorPOJobs, until all Services, Jobs and pods exist", "s", lambda each: f"{each.ours:.1f}"),
        ("**ours / floor** (goal: ≤ 2)", "", lambda each: f"**{each.ours / each.floor:.2f}**"),
        ("jobs a second", "", lambda each: f"{each.jobs / each.ours:.1f}"),
        ("CPU a job until then, control plane, floor", "ms", lambda each: _each(each, each.floor_cost)),
        ("the same, ours", "ms", lambda each: _each(each, each.cost, but="operator")),
        ("the same, operator", "ms", lambda each: f"{1000 * each.cost['operator'] / each.jobs:.1f}"),
        ("operator's memory then", "MB", lambda each: f"{each.rss:.0f}"),
        ("operator's writes a job until then (goal: ≤ 4)", "", lambda each: f"{each.early:.2f}"),
        ("the same until all is told", "", lambda each: f"{each.late:.2f}"),
        ("all jobs wait for nodes: CPU (goal: ≤ 2)", "%", lambda each: f"{100 * each.idle_cpu:.1f}"),
        ("memory (goal: ≤ 200)", "MB", lambda each: f"{each.idle_rss:.0f}"),
        ("restart until each job was looked at (goal: ≤ 60)", "s", lambda each: f"{each.restart:.1f}"),
        ("writes of the restart (goal: 0)", "", lambda each: f"{each.restart_writes}"),
        (f"a job applied alone until its pods exist, median of {ALONE}", "s", lambda each: _alone(each, 0.5)),
        ("the same, 95th percentile (goal: ≤ 1)", "s", lambda each: _alone(each, 0.95)),
        ("all jobs run and tell of progress: CPU", "%", lambda each: f"{100 * each.polled[0]:.1f}"),
        ("status writes", "1/s", lambda each: f"{each.polled[1]:.1f}"),
        ("memory", "MB", lambda each: f"{each.polled_rss:.0f}"),
    ]
    head = "| | | " + " | ".join(f"{each.jobs:,} jobs" for each in all_found) + " |"
    lines = [head, "|---|---|" + "--:|" * len(all_found)]
    lines += [f"| {name} | {unit} | " + " | ".join(map(show, all_found)) + " |" for name, unit, show in rows]
    return "\n".join(lines) + "\n"


def _each(found: Found, cost: dict[str, float], but: str = "") -> str:
    return f"{1000 * sum(value for name, value in cost.items() if name != but) / found.jobs:.1f}"


def _alone(found: Found, share: float) -> str:
    return f"{quantile(found.alone, share):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 5000])
    given = parser.parse_args()
    print(markdown([measure(jobs) for jobs in given.jobs]))


if __name__ == "__main__":
    main()
