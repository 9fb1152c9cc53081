"""How long nobody leads: `python -m benchmarks.operator.takeover [--runs 5]`, on a real control plane of the tests.

From the signal that ends the leader until the replica that stood by leads, and until it has made the gang of a job that
is applied at the same moment. Idle besides.
"""

import argparse
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.operator.scale import cluster, ours
from tests.cluster.api import Kubectl
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator

ELECT = ("--leader-elect", "--lease-namespace=tailorpo-system")
ENDS = {"killed (goal: < 20 s)": signal.SIGKILL, "stopped (goal: < 3 s)": signal.SIGTERM}


@dataclass(frozen=True)
class TakeOver:
    """Seconds from the end of the leader."""

    leads: float
    acts: float


def replica(user: Path, log: Path) -> WarmOperator:
    """One that stands by; the first leads."""
    operator = WarmOperator(user, log, *ELECT)
    operator.start()
    until(lambda: operator.ask("/readyz")[0] == 200, "it is ready")
    return operator


def take_over(
    kubectl: Kubectl, leader: WarmOperator, follower: WarmOperator, end: signal.Signals, job: int
) -> TakeOver:
    begun = time.monotonic()
    leader.signal(end)
    kubectl.apply(ours(job))
    until(lambda: "leading" in follower.logged(), "the other leads")
    leads = time.monotonic()
    until(lambda: f"job-{job}" in kubectl("get", "jobs", "--output=name"), "its gang is made")
    return TakeOver(leads - begun, time.monotonic() - begun)


def measure(end: signal.Signals, runs: int) -> Iterator[TakeOver]:
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as (plane, user):
        leader = replica(user, Path(folder) / "operator-0")
        until(lambda: "leading" in leader.logged(), "the first leads")
        for run in range(runs):
            follower = replica(user, Path(folder) / f"operator-{run + 1}")
            kubectl = plane.kubectl(ours(run)["metadata"]["namespace"])
            yield take_over(kubectl, leader, follower, end, run)
            leader.kill()  # what is left of it
            leader = follower
        leader.kill()


def markdown(found: dict[str, Sequence[TakeOver]]) -> str:
    lines = [
        "| the leader is | runs | leads after, median | greatest | acts after, median | greatest |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, each in found.items():
        columns = [[one.leads for one in each], [one.acts for one in each]]
        figures = [f"{figure:.1f} s" for column in columns for figure in (median(column), max(column))]
        lines.append(f"| {name} | {len(each)} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator.takeover", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    print(markdown({name: list(measure(end, given.runs)) for name, end in ENDS.items()}))


if __name__ == "__main__":
    main()
