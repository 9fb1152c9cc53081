"""The operator's commands. Large modules are imported only when a command runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tailorpo_operator.api import naming
from tailorpo_trainer.cli.error_exit import message
from tailorpo_trainer.errors import ConfigurationError

Command = TypeVar("Command", bound=Callable[..., Any])


copied_prefixes = click.option(
    "--copied-prefix",
    "copied",
    multiple=True,
    default=naming.COPIED_PREFIXES,
    show_default=True,
    envvar="TAILORPO_COPIED_PREFIXES",
    show_envvar=True,
    help="Prefix of the labels and annotations of a TailorPOJob that its Jobs and pods get, too; may be repeated.",
)


@click.command(short_help="Show what a document becomes on a cluster.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--attempt", type=click.IntRange(1, 2**31 - 1), default=1, show_default=True, help="Number of the attempt, from 1."
)
@click.option(
    "--image", default=naming.IMAGE, show_default=True, help="Trainer image, where spec.template.image names none."
)
@copied_prefixes
@click.option("--namespace", help="Namespace. Default: metadata.namespace, if there is one.")
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="Override a field, such as spec.workers=2; may be repeated. Without VALUE: its default.",
)
def render(
    file: Path,
    attempt: int,
    image: str,
    copied: tuple[str, ...],
    namespace: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Print as YAML the objects that the operator creates for the jobs in FILE, without a cluster.

    Only the owner references to the job, and annotations about its generation, are missing.
    """
    from tailorpo_operator.api.types import Job
    from tailorpo_operator.children import indexed_job
    from tailorpo_trainer import document

    if namespace is not None:
        overrides += (f"metadata.namespace={json.dumps(namespace)}",)
    pages: list[str] = []
    for read in document.read_all(file, overrides):
        job = Job(metadata=read.metadata.model_dump(exclude_none=True), spec=read.spec).copying(copied)
        try:
            children = [indexed_job.service(job), indexed_job.attempt(job, attempt, image)]
        except indexed_job.TooLarge as error:
            raise ConfigurationError(f"{click.format_filename(file)}: {read.metadata.name}: {error}") from None
        pages += [document.dump_values(child) for child in children if child]
        for warning in indexed_job.warnings(job):
            message(f"{read.metadata.name}: {warning}", "warning")
    click.echo("---\n".join(pages), nl=False)


def seconds(name: str, default: float, text: str) -> Callable[[Command], Command]:
    """An option in seconds."""
    kind = click.FloatRange(0, min_open=True)
    return click.option(name, type=kind, default=default, show_default=True, metavar="SECONDS", help=text)


@click.command(short_help="Run the Kubernetes operator.")
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: the pod's service account, or KUBECONFIG, or ~/.kube/config.",
)
@click.option("--context", help="Context of the kubeconfig. Default: its current one.")
@click.option(
    "--watch-namespace",
    "namespaces",
    multiple=True,
    envvar="TAILORPO_WATCH_NAMESPACES",
    show_envvar=True,
    help="Namespace whose jobs are reconciled; may be repeated. Default: all.",
)
@click.option(
    "--image",
    default=naming.IMAGE,
    show_default=True,
    envvar="TAILORPO_TRAINER_IMAGE",
    show_envvar=True,
    help="Trainer image, where spec.template.image names none.",
)
@copied_prefixes
@click.option(
    "--host",
    default="::",
    show_default=True,
    help="Address of /healthz, /readyz and /metrics; `::` is all of IPv4 and IPv6.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port of these; 0 takes any free one.",
)
@click.option(
    "--workers", type=click.IntRange(1, 1000), default=16, show_default=True, help="Jobs reconciled at the same time."
)
@click.option(
    "--requests-per-second",
    type=click.FloatRange(0, min_open=True),
    default=200,
    show_default=True,
    help="Limit of requests to the API server, without watches.",
)
@seconds("--retry-seconds", 10, "Delay before the second attempt; doubled before each further one.")
@seconds("--retry-seconds-max", 360, "Longest delay before an attempt.")
@seconds("--lost-seconds", 30, "Time after its grace period until a pod that does not end is deleted by force.")
@seconds("--progress-seconds", 15, "Time between two requests to a running job for its progress.")
@seconds("--status-seconds", 30, "Shortest time between two writes of a job's status that change only its progress.")
@seconds(
    "--request-timeout-seconds",
    30,
    "Time until an unanswered request to the API server is retried. Watches are restarted as often.",
)
@click.option(
    "--job-metrics/--no-job-metrics",
    default=True,
    show_default=True,
    envvar="TAILORPO_JOB_METRICS",
    show_envvar=True,
    help="Serve metrics of each job, about 20 series each.",
)
@click.option(
    "--job-metrics-limit",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    envvar="TAILORPO_JOB_METRICS_LIMIT",
    show_envvar=True,
    help="Number of jobs with metrics of their own, at most: active ones first, then the newest.",
)
@seconds("--resync-seconds", 300, "Time between full lists of jobs, which find what watches missed.")
@click.option(
    "--leader-elect/--no-leader-elect",
    default=None,
    help="Elect a leader among several operators, by a Lease. Default: in a pod yes, otherwise no.",
)
@click.option(
    "--lease-namespace",
    envvar="POD_NAMESPACE",
    show_envvar=True,
    default="tailorpo-system",
    show_default=True,
    help="Namespace of the Lease `tailorpo-operator`.",
)
@click.option("--log", type=click.Choice(["auto", "json", "plain"]), default="auto", help="Form of the log.")
@click.option("--verbose", is_flag=True, help="Log more.")
def operator(
    kubeconfig: Path | None,
    context: str | None,
    namespaces: tuple[str, ...],
    image: str,
    copied: tuple[str, ...],
    host: str,
    port: int,
    workers: int,
    requests_per_second: float,
    retry_seconds: float,
    retry_seconds_max: float,
    lost_seconds: float,
    progress_seconds: float,
    status_seconds: float,
    request_timeout_seconds: float,
    resync_seconds: float,
    job_metrics: bool,
    job_metrics_limit: int,
    leader_elect: bool | None,
    lease_namespace: str,
    log: str,
    verbose: bool,
) -> None:
    """Reconcile all TailorPOJobs of a cluster until SIGTERM or Ctrl-C."""
    _require_operator()
    import asyncio

    from tailorpo_operator import logs
    from tailorpo_operator.controller.manager import Operator
    from tailorpo_operator.planning.backoff import Retries
    from tailorpo_operator.settings import Lease, Settings

    logs.configure(verbose=verbose, as_json=None if log == "auto" else log == "json")
    elect = "KUBERNETES_SERVICE_HOST" in os.environ if leader_elect is None else leader_elect
    settings = Settings(
        namespaces=namespaces,
        image=image,
        copied_prefixes=copied,
        workers=workers,
        requests_per_second=requests_per_second,
        burst=max(1, round(2 * requests_per_second)),
        request_timeout=request_timeout_seconds,
        resync=resync_seconds,
        progress_interval=progress_seconds,
        status_interval=status_seconds,
        job_metrics=job_metrics,
        job_metrics_limit=job_metrics_limit,
        lease=Lease(lease_namespace) if elect else None,
        retries=Retries(first=retry_seconds, most=retry_seconds_max, lost=lost_seconds),
    )

    async def run() -> None:
        await Operator(settings, kubeconfig, context).run(host, port)

    asyncio.run(run())


def _require_operator() -> None:
    from importlib.util import find_spec

    if find_spec("kopf") is None:
        raise ConfigurationError("the operator is not installed here: pip install 'tailorpo[operator]'")


COMMANDS: tuple[click.Command, ...] = (render, operator)
"""The commands that `tailorpo` has besides the trainer's."""
