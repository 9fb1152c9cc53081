"""`tailorpo run`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tailorpo_trainer.cli.error_exit import message
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.training.launch import WorldLayout

if TYPE_CHECKING:
    from tailorpo_trainer.spec.job import TailorPOJob
    from tailorpo_trainer.telemetry.exporters import TelemetryOptions
    from tailorpo_trainer.telemetry.termination import TerminationReporter


LOADING = "loading PyTorch and the model: this may take a minute"


@dataclass
class RunState:
    """What `tailorpo run` leaves for the command line. reporter: of this process, once its run has begun."""

    reporter: TerminationReporter | None = None


def _rank_arguments(
    file: Path, output: Path | None, overrides: tuple[str, ...], fresh: bool, display: str, telemetry: TelemetryOptions
) -> list[str]:
    """The arguments of `tailorpo run` in each of several processes."""
    arguments = [str(file), *(["--output", str(output)] if output else [])]
    arguments += [f"--set={text}" for text in overrides]
    arguments += ["--fresh"] if fresh else []
    arguments += {"quiet": ["--quiet"], "json": ["--json"], "plain": ["--no-progress"]}.get(display, [])
    arguments += [f"--metrics-host={telemetry.host}", f"--metrics-stall-seconds={telemetry.stall_seconds}"]
    arguments += [f"--metrics-port={telemetry.port}"] if telemetry.port is not None else []
    given = {"--tensorboard": telemetry.tensorboard, "--mlflow": telemetry.mlflow, "--wandb": telemetry.wandb}
    return arguments + [option for option, asked in given.items() if asked]


def _launch(job: TailorPOJob, layout: WorldLayout, arguments: list[str], output: Path | None, base: Path) -> int:
    from tailorpo_trainer.results import locations, run_folder
    from tailorpo_trainer.spec import rules
    from tailorpo_trainer.training import launch

    if problem := rules.shares_problem(job.spec, layout.size):
        raise ConfigurationError(f"spec.training.promptsPerIteration: {problem}")
    progress = run_folder.RunFolder(locations.choose(job, output, base).output).progress
    rank, code, _ = launch.launch(arguments, layout, job.spec.run_policy, progress)
    if code:
        message(f"rank {rank} of {layout.size} ended first, with exit code {code}")
    return code


@click.command(short_help="Train what a document says.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of results and checkpoints. Default: spec.checkpoint.storage, or runs/NAME.",
)
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="Override a field, such as spec.sampling.steps=10; may be repeated. Without VALUE: its default.",
)
@click.option("--fresh", is_flag=True, help="Start anew instead of going on from the newest checkpoint.")
@click.option("--quiet", is_flag=True, help="Show alarms and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Show progress as JSON lines.")
@click.option("--no-progress", is_flag=True, help="Show progress as plain lines, on a terminal too.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    envvar="TAILORPO_METRICS_PORT",
    show_envvar=True,
    help="Serve /metrics, /progress and /healthz there; 0 takes any free port. Default: not at all.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    envvar="TAILORPO_METRICS_HOST",
    show_envvar=True,
    help="Address to serve on; :: (IPv4 and IPv6) lets other machines ask.",
)
@click.option(
    "--metrics-stall-seconds",
    type=click.FloatRange(0, min_open=True),
    default=1800,
    show_default=True,
    envvar="TAILORPO_METRICS_STALL_SECONDS",
    show_envvar=True,
    help="After so long without a new line of metrics.jsonl, /healthz answers 503.",
)
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's event files to OUTPUT/tensorboard.")
@click.option(
    "--mlflow",
    is_flag=True,
    envvar="TAILORPO_MLFLOW",
    show_envvar=True,
    help="Log to MLflow: to MLFLOW_TRACKING_URI, by default OUTPUT/mlflow.db.",
)
@click.option(
    "--wandb",
    is_flag=True,
    envvar="TAILORPO_WANDB",
    show_envvar=True,
    help="Log to Weights & Biases: to OUTPUT/wandb, with WANDB_MODE=online to its server.",
)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes here, one an accelerator."
)
@click.option(
    "--nodes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Machines, each running this."
)
@click.option("--node-rank", type=click.IntRange(0, 1023), default=0, show_default=True, help="This machine's number.")
@click.option("--master-addr", metavar="HOST", default="127.0.0.1", show_default=True, help="Address of machine 0.")
@click.option(
    "--master-port", type=click.IntRange(1, 65_535), default=29400, show_default=True, help="A free port there."
)
@click.pass_obj
def run(
    state: RunState,
    file: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    fresh: bool,
    quiet: bool,
    as_json: bool,
    no_progress: bool,
    metrics_port: int | None,
    metrics_host: str,
    metrics_stall_seconds: float,
    tensorboard: bool,
    mlflow: bool,
    wandb: bool,
    processes: int,
    nodes: int,
    node_rank: int,
    master_addr: str,
    master_port: int,
) -> None:
    """Train what a document says on this machine, or go on where it stopped.

    Ctrl-C stops after a checkpoint; the same command then goes on from there, also with another number of processes.
    """
    if node_rank >= nodes:
        raise click.UsageError(f"--node-rank {node_rank} needs --nodes {node_rank + 1} at least")
    if quiet + as_json + no_progress > 1:
        raise click.UsageError("--quiet, --json and --no-progress exclude each other")
    display: Literal["auto", "plain", "json", "quiet"] = (
        "quiet" if quiet else "json" if as_json else "plain" if no_progress else "auto"
    )
    from tailorpo_trainer import document
    from tailorpo_trainer.spec.progress import Progress
    from tailorpo_trainer.telemetry import exporters, termination

    state.reporter = reporter = termination.TerminationReporter()
    reporter.report(Progress())
    telemetry = exporters.TelemetryOptions(
        metrics_port, metrics_host, metrics_stall_seconds, tensorboard, mlflow, wandb
    )
    job = document.read(file, overrides)
    ignored = cluster_fields(job)
    if ignored and not quiet:
        message(f"{click.format_filename(file)}: only a cluster reads {', '.join(ignored)}: left out here")
    need_trainer()
    if processes * nodes > 1 and "RANK" not in os.environ:
        layout = WorldLayout(processes, nodes, node_rank, master_addr, master_port)
        ranks = _rank_arguments(file, output, overrides, fresh, display, telemetry)
        raise click.exceptions.Exit(_launch(job, layout, ranks, output, file.parent))
    if display in ("auto", "plain") and "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        message(LOADING)
    from tailorpo_trainer.training import loop

    loop.run(job, output, base=file.parent, fresh=fresh, display=display, telemetry=telemetry, reporter=reporter)


def cluster_fields(job: TailorPOJob) -> list[str]:
    """The fields on where a run runs, as far as they ask for anything but one process on this machine."""
    from tailorpo_trainer.spec.job import CLUSTER_FIELDS, TRAINER_RUN_POLICY, RunPolicy, Spec

    def changed(section: RunPolicy | Spec, names: Iterable[str], path: str) -> list[str]:
        fields = type(section).model_fields
        return [
            f"{path}.{fields[name].alias or name}"
            for name in names
            if name in section.model_fields_set and getattr(section, name) != fields[name].default
        ]

    run_policy = [name for name in RunPolicy.model_fields if name not in TRAINER_RUN_POLICY]
    spec = [name for name in CLUSTER_FIELDS if name != "run_policy"]
    paths = changed(job.spec, spec, "spec") + changed(job.spec.run_policy, run_policy, "spec.runPolicy")
    return paths + (["spec.checkpoint.secretName"] if job.spec.checkpoint.secret_name else [])


def need_trainer() -> None:
    """Raise `ConfigurationError` if only the operator is installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ConfigurationError("the trainer is not installed here: pip install 'tailorpo[trainer]'")
