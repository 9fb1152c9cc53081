"""Many jobs at once: `python -m benchmarks.operator.scale --jobs 1000`, on a real control plane of the tests.

The floor is the same number of plain Indexed Jobs, made directly: the very Jobs that the operator makes, as `tailorpo
render` prints them; and, for what their pods cost, Jobs whose pods have next to nothing in them. Then the same as
TailorPOJobs with the operator. All until all children exist: Services, Jobs, pods. Pods have no node, and no scheduler
looks at them. Each on a control plane of its own; a quarter of a second of ours and of the others in turns (`race.py`).
Afterwards the operator is watched while all jobs wait, when it is started again, and while all jobs run and tell how
far they are.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient

from benchmarks.operator import crowd
from benchmarks.race import Contender, Track, race
from tailorpo_operator.api import naming
from tailorpo_operator.api import types as names
from tailorpo_operator.children.indexed_job import attempt
from tailorpo_operator.kube import kubeconfig
from tailorpo_operator.kube.client import path_of
from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.kube.transport import Transport
from tests.cluster.control_plane import ControlPlane, control_plane
from tests.operator.installed import rights, serve

NAMESPACES = tuple(f"team-{number}" for number in range(20))
"""As teams have them: one Service in each."""
WORKERS = 2
CLIENTS = 32
NOBODY = "nobody"  # a scheduler that there is not
OPERATOR = "operator"
IDLE, SETTLE, POLLED = 360.0, 60.0, 60.0
"""Seconds over which an operator is watched whose jobs wait for nodes, with a resync, which comes every 300; until all
that run are known to; and over which it is watched then."""
ALONE = 20
"""Jobs that are applied one by one."""

Object = dict[str, Any]


def named(number: int) -> Object:
    """Name and namespace of a job."""
    return {"name": f"job-{number}", "namespace": NAMESPACES[number % len(NAMESPACES)]}


def rendered(number: int) -> Object:
    """The Job that the operator makes of `ours`."""
    job = names.Job.model_validate(ours(number))
    return attempt(job, 1, naming.IMAGE)


def bare(number: int) -> Object:
    """The same with as little in it as can be."""
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


def ours(number: int) -> Object:
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


async def count(transport: Transport, path: str) -> int:
    """How many objects there are."""
    page = await transport.request("list", path, query={"limit": "1"})
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


async def create(transport: Transport, objects: Iterable[Object]) -> None:
    await crowd.by_many((transport.request("create", path_of(raw), raw) for raw in objects), CLIENTS)


async def until_there(transport: Transport, path: str, total: int) -> None:
    while await count(transport, path) < total:
        await asyncio.sleep(0.2)


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[ControlPlane, Path]]:
    """A control plane with the definition and the operator's rights."""
    with control_plane(logs=folder) as plane:
        kubectl = plane.kubectl("tailorpo-system")
        for name in NAMESPACES:
            kubectl("create", "namespace", name)
        serve(plane)
        user = rights(plane)
        for name in NAMESPACES:
            kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
        yield plane, user


async def _nothing() -> None:
    """Its credentials last."""


@asynccontextmanager
async def administrator(plane: ControlPlane) -> AsyncIterator[Transport]:
    """Requests without a limit."""
    async with ApiClient(await kubeconfig.load(plane.kubeconfig, None)) as client:
        client.rest_client.maxsize = 2 * CLIENTS
        yield Transport(client, RateLimit(1e6, 1_000_000), _nothing)


@dataclass(frozen=True)
class Arrival:
    """Many jobs at once: seconds until all children exist, CPU seconds until then, the operator's writes a job."""

    seconds: float
    cost: dict[str, float]
    writes: float = 0.0


@dataclass(frozen=True)
class Life:
    """What comes after the arrival. Seconds, MB, CPU seconds a second, and the operator's writes.

    Attributes:
        rss: with all children there.
        late: writes a job until nothing is left to say of them.
        polled: while all jobs run and tell of progress: CPU, and status writes a second.
    """

    rss: float
    late: float
    alone: tuple[float, ...]
    idle_cpu: float
    idle_rss: float
    restart: float
    restart_writes: int
    restart_rss: float
    polled: tuple[float, float]
    polled_rss: float


@dataclass(frozen=True)
class Found:
    """Of one number of jobs; arrivals of each turn."""

    jobs: int
    bare: tuple[Arrival, ...]
    floor: tuple[Arrival, ...]
    ours: tuple[Arrival, ...]
    life: Life


def cpu_of(pid: int) -> float:
    """Seconds of CPU so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(plane: ControlPlane, operator: Operator | None = None) -> dict[str, float]:
    found = {name: cpu_of(server.pid) for name, server in plane.servers.items()}
    return found | ({} if operator is None else {OPERATOR: operator.cpu})


def less(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


async def jobs_arrive(plane: ControlPlane, objects: Sequence[Object]) -> Arrival:
    """Jobs, made directly."""
    async with administrator(plane) as transport:
        begun, before = time.monotonic(), cost(plane)
        await create(transport, objects)
        await until_there(transport, PODS, WORKERS * len(objects))
        return Arrival(time.monotonic() - begun, less(cost(plane), before))


async def ours_arrive(plane: ControlPlane, transport: Transport, operator: Operator, jobs: int) -> Arrival:
    """TailorPOJobs; the operator runs."""
    services = await count(transport, SERVICES)
    mark, before, begun = plane.audit.mark(), cost(plane, operator), time.monotonic()
    await create(transport, [ours(number) for number in range(jobs)])
    await until_there(transport, PODS, WORKERS * jobs)
    await until_there(transport, SERVICES, services + min(jobs, len(NAMESPACES)))
    seconds, used = time.monotonic() - begun, less(cost(plane, operator), before)
    return Arrival(seconds, used, sum(writes(plane, mark).values()) / jobs)


@asynccontextmanager
async def started(plane: ControlPlane, user: Path, log: Path) -> AsyncIterator[tuple[Transport, Operator]]:
    """An administrator, and an operator that has started and does nothing."""
    async with administrator(plane) as transport:
        operator = Operator(user, log)
        try:
            await asyncio.sleep(8)
            yield transport, operator
        finally:
            operator.stop()


def writes(plane: ControlPlane, mark: int) -> Counter[str]:
    """The operator's, by resource."""
    requests = plane.audit.since(mark)
    return Counter(each.resource for each in requests if each.writes and "tailorpo-operator" in each.user)


async def quiet(operator: Operator) -> None:
    """Until the operator has nothing to do any more."""
    last = -1.0
    while operator.cpu - last > 0.05 or await figure(operator, "queue_length") != 0:
        last = operator.cpu
        await asyncio.sleep(2)


async def figure(operator: Operator, name: str) -> float | None:
    """One of its metrics, once it serves them."""
    if (port := operator.port) is None:
        return None
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(rf"^tailorpo_operator_{name} (\S+)$", await answer.text(), re.MULTILINE)
    return float(found[1]) if found else None


async def apply_alone(transport: Transport, number: int) -> float:
    """Seconds from a job's creation to its pods'."""
    begun = time.monotonic()
    raw, query = ours(number), {"labelSelector": f"{naming.JOB}=job-{number}"}
    await transport.request("create", path_of(raw), raw)
    pods = f"/api/v1/namespaces/{raw['metadata']['namespace']}/pods"
    while len((await transport.request("list", pods, query=query))["items"]) < WORKERS:
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def reconciled(operator: Operator, jobs: int) -> None:
    """Until an operator that was just started has looked at all jobs."""
    while (await figure(operator, "reconcile_seconds_count") or 0) < jobs:
        await asyncio.sleep(0.2)


async def watched(operator: Operator, seconds: float) -> float:
    """The operator's CPU seconds a second."""
    before = operator.cpu
    await asyncio.sleep(seconds)
    return (operator.cpu - before) / seconds


def direct(track: Track, jobs: int, make: Callable[[int], Object]) -> None:
    """A contender: batch/v1 Jobs, made directly."""
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as (plane, _):
        objects = [make(number) for number in range(jobs)]
        track.ready(server.pid for server in plane.servers.values())
        track.done(asyncio.run(jobs_arrive(plane, objects)))


def by_operator(track: Track, jobs: int, live_on: bool) -> None:
    """A contender: TailorPOJobs; and what comes after they have arrived, if that is wanted."""
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as (plane, user):
        asyncio.run(_by_operator(track, plane, user, jobs, Path(folder, "operator.log"), live_on))


async def _by_operator(track: Track, plane: ControlPlane, user: Path, jobs: int, log: Path, live_on: bool) -> None:
    async with started(plane, user, log) as (transport, operator):
        mark = plane.audit.mark()
        track.ready([operator.process.pid, *(server.pid for server in plane.servers.values())])
        track.done(await ours_arrive(plane, transport, operator, jobs))
        if not live_on:
            return
        rss = operator.rss
        await quiet(operator)
        late = sum(writes(plane, mark).values()) / jobs
        alone = [await apply_alone(transport, jobs + number) for number in range(ALONE)]
        await quiet(operator)
        idle, idle_rss = await watched(operator, IDLE), operator.rss
    mark, begun = plane.audit.mark(), time.monotonic()
    async with administrator(plane) as transport:
        operator = Operator(user, log)
        await reconciled(operator, jobs + ALONE)
        restart = time.monotonic() - begun
        await quiet(operator)
        again, restart_rss = writes(plane, mark), operator.rss
        await crowd.run(transport, (await transport.list_all(PODS))[0])
        with crowd.answering():
            await asyncio.sleep(SETTLE)  # each is found to run, and is asked for the first time
            mark = plane.audit.mark()
            polled = await watched(operator, POLLED), sum(writes(plane, mark).values()) / POLLED
            polled_rss = operator.rss
        operator.stop()
    life = Life(
        rss=rss,
        late=late,
        alone=tuple(alone),
        idle_cpu=idle,
        idle_rss=idle_rss,
        restart=restart,
        restart_writes=sum(again.values()),
        restart_rss=restart_rss,
        polled=polled,
        polled_rss=polled_rss,
    )
    track.done(life)


def measure(jobs: int, turns: int) -> Found:
    """All in one run."""
    bares, floors, others = list[Arrival](), list[Arrival](), list[Arrival]()
    life = None
    for turn in range(turns):
        last = turn == turns - 1
        with (
            Contender(direct, jobs, bare) as least,
            Contender(direct, jobs, rendered) as floor,
            Contender(by_operator, jobs, last) as operated,
        ):
            # Both together take about as long as ours; whichever is second shares another part of it.
            race([operated], [floor, least] if turn % 2 == 0 else [least, floor])
            for contender, among in ((least, bares), (floor, floors), (operated, others)):
                among.append(replace(contender.result, seconds=contender.seconds))
            line = f"bare Jobs {least.seconds:.1f} s, rendered {floor.seconds:.1f} s, ours {operated.seconds:.1f} s"
            print(f"{jobs}, turn {turn + 1}: {line}", file=sys.stderr, flush=True)
            life = operated.go_on() if last else None
    assert life is not None
    return Found(jobs, tuple(bares), tuple(floors), tuple(others), life)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def markdown(all_found: Sequence[Found]) -> str:
    rows = [
        ("Jobs of next to nothing, until all pods exist", "s", lambda each: _span(_seconds(each.bare))),
        ("**floor**: the same Jobs as ours, made directly", "s", lambda each: _span(_seconds(each.floor))),
        ("TailorPOJobs, until all Services, Jobs and pods exist", "s", lambda each: _span(_seconds(each.ours))),
        ("**ours / floor** (goal: ≤ 2)", "", lambda each: f"**{_span(_ratios(each.ours, each.floor))}**"),
        ("ours / Jobs of next to nothing", "", lambda each: _span(_ratios(each.ours, each.bare))),
        ("jobs a second", "", lambda each: f"{each.jobs / statistics.median(_seconds(each.ours)):.1f}"),
        ("CPU a job until then, control plane, floor", "ms", lambda each: _span(_cost(each, each.floor))),
        ("the same, ours", "ms", lambda each: _span(_cost(each, each.ours))),
        ("the same, operator", "ms", lambda each: _span(_cost(each, each.ours, of=OPERATOR))),
        ("operator's memory then", "MB", lambda each: f"{each.life.rss:.0f}"),
        ("operator's writes a job until then (goal: ≤ 4)", "", lambda each: _span([a.writes for a in each.ours], 2)),
        ("the same until all is told", "", lambda each: f"{each.life.late:.2f}"),
        (
            f"all jobs wait for nodes, {IDLE:.0f} s: CPU (goal: ≤ 2)",
            "%",
            lambda each: f"{100 * each.life.idle_cpu:.1f}",
        ),
        ("memory (goal: ≤ 200)", "MB", lambda each: f"{each.life.idle_rss:.0f}"),
        ("restart until each job was looked at (goal: ≤ 60)", "s", lambda each: f"{each.life.restart:.1f}"),
        ("writes of the restart (goal: 0)", "", lambda each: f"{each.life.restart_writes}"),
        ("memory then (goal: ≤ 200)", "MB", lambda each: f"{each.life.restart_rss:.0f}"),
        (f"a job applied alone until its pods exist, median of {ALONE}", "s", lambda each: _alone(each, 0.5)),
        ("the same, 95th percentile (goal: ≤ 1)", "s", lambda each: _alone(each, 0.95)),
        ("all jobs run and tell of progress: CPU", "%", lambda each: f"{100 * each.life.polled[0]:.1f}"),
        ("status writes", "1/s", lambda each: f"{each.life.polled[1]:.1f}"),
        ("memory", "MB", lambda each: f"{each.life.polled_rss:.0f}"),
    ]
    head = "| | | " + " | ".join(f"{each.jobs:,} jobs" for each in all_found) + " |"
    lines = [head, "|---|---|" + "--:|" * len(all_found)]
    lines += [f"| {name} | {unit} | " + " | ".join(map(show, all_found)) + " |" for name, unit, show in rows]
    return "\n".join(lines) + "\n"


def _seconds(arrivals: Iterable[Arrival]) -> list[float]:
    return [arrival.seconds for arrival in arrivals]


def _ratios(ours: Sequence[Arrival], others: Sequence[Arrival]) -> list[float]:
    """Of each turn."""
    return [one.seconds / other.seconds for one, other in zip(ours, others, strict=True)]


def _cost(found: Found, arrivals: Iterable[Arrival], of: str = "") -> list[float]:
    """Milliseconds a job, of one process or of the control plane."""
    chosen = [
        [cpu for name, cpu in arrival.cost.items() if (name == of if of else name != OPERATOR)] for arrival in arrivals
    ]
    return [1000 * sum(each) / found.jobs for each in chosen]


def _span(values: Sequence[float], digits: int | None = None) -> str:
    """Median, and in brackets the least and the greatest."""
    digits = (2 if max(values) < 10 else 1) if digits is None else digits
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def _alone(found: Found, share: float) -> str:
    return f"{quantile(found.life.alone, share):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--turns", type=int, default=3, help="how often the arrival is measured, each time of all")
    given = parser.parse_args()
    if given.turns < 1:
        parser.error(f"--turns: {given.turns} must be at least 1")
    print(markdown([measure(jobs, given.turns) for jobs in given.jobs]))


if __name__ == "__main__":
    main()
