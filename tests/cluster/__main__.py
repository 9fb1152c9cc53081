"""`python -m tests.cluster up` runs a control plane until Ctrl-C; `build` only builds its servers."""

import shlex
import signal
import sys
import threading

import click

from tests.cluster import build
from tests.cluster.control_plane import control_plane
from tests.cluster.pods import PodDriver
from tests.cluster.processes import ServerError
from tests.cluster.servers import Options


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("build")
def build_servers() -> None:
    """Build etcd and the Kubernetes servers into the cache, unless they are there."""
    click.echo(build.binaries())


@main.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(min=0), help="Node objects to make.")
@click.option("--run-pods", is_flag=True, help="Report every pod on them as running.")
@click.option("--feature-gate", "gates", multiple=True, metavar="NAME", help="Switch on in all servers; repeatable.")
@click.option("--runtime-config", "apis", multiple=True, metavar="API", help="Serve, as in api/all; repeatable.")
def up(nodes: int, run_pods: bool, gates: tuple[str, ...], apis: tuple[str, ...]) -> None:
    """Run a control plane, print how to reach it, and stay until Ctrl-C."""
    options = Options(feature_gates=dict.fromkeys(gates, True), runtime_config=dict.fromkeys(apis, True))
    with control_plane(options=options) as plane, plane.api() as api, PodDriver(api, run_all=run_pods) as driver:
        for index in range(nodes):
            driver.add_node(f"node-{index}")
        click.echo(f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}")
        click.echo(f"Kubernetes {build.kubernetes_version()} until Ctrl-C; logs in {plane.logs}", err=True)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        while not stopped.wait(1.0):
            plane.check()


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, build.BuildError, ServerError) as error:  # the first: not ready in time
        sys.exit(f"tests.cluster: {error}")
