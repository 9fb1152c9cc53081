"""`python -m tests.cluster up` runs a control plane until Ctrl-C; `build` only builds the programs."""

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from tests.cluster import build
from tests.cluster.control_plane import ControlPlane, control_plane
from tests.cluster.helm import HELM
from tests.cluster.pods import PodDriver
from tests.cluster.processes import ServerError
from tests.cluster.prometheus import PROMETHEUS
from tests.cluster.real.cluster import RealCluster, real_cluster
from tests.cluster.real.images import TRAINER
from tests.cluster.real.network import GATEWAY
from tests.cluster.real.programs import UnfitError, installed
from tests.cluster.servers import Options


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("build")
@click.option("--real", is_flag=True, help="The programs of real nodes too.")
def build_servers(real: bool) -> None:
    """Build etcd, the Kubernetes servers, Helm and Prometheus into the cache, unless they are there."""
    for programs in (build.SERVERS, HELM, PROMETHEUS):
        click.echo(build.binaries(programs))
    if real:
        click.echo(installed().folder)


@main.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(min=0), help="Nodes to make.")
@click.option("--real", is_flag=True, help="Real nodes, which run pods; needs Linux and root.")
@click.option("--run-pods", is_flag=True, help="Report every pod on nodes that are not real as running.")
@click.option("--feature-gate", "gates", multiple=True, metavar="NAME", help="Switch on in all servers; repeatable.")
@click.option("--runtime-config", "apis", multiple=True, metavar="API", help="Serve, as in api/all; repeatable.")
def up(nodes: int, real: bool, run_pods: bool, gates: tuple[str, ...], apis: tuple[str, ...]) -> None:
    """Run a control plane, print how to reach it, and stay until Ctrl-C."""
    if real and run_pods:
        raise click.UsageError("--run-pods plays nodes that are not real; leave it or --real out")
    options = Options(feature_gates=dict.fromkeys(gates, True), runtime_config=dict.fromkeys(apis, True))
    with real_cluster(nodes, options=options) if real else _played(nodes, run_pods, options) as plane:
        click.echo(f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}")
        click.echo(f"Kubernetes {build.kubernetes_version()} until Ctrl-C; logs in {plane.logs}", err=True)
        if isinstance(plane, RealCluster):
            click.echo(
                f"in the pods' network, with them at {GATEWAY}: {shlex.join(plane.network.enter)} COMMAND", err=True
            )
            click.echo(f"the image with this environment: {TRAINER}", err=True)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        while not stopped.wait(1.0):
            plane.check()


@contextmanager
def _played(nodes: int, run_pods: bool, options: Options) -> Iterator[ControlPlane]:
    with control_plane(options=options) as plane, plane.api() as api, PodDriver(api, run_all=run_pods) as driver:
        for index in range(nodes):
            driver.add_node(f"node-{index}")
        yield plane


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, build.BuildError, ServerError, UnfitError) as error:  # AssertionError: not ready in time
        sys.exit(f"tests.cluster: {error}")
