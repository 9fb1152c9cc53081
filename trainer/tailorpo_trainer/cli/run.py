"""`tailorpo run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tailorpo_trainer.cli.ending import message
from tailorpo_trainer.exits import ConfigurationError

if TYPE_CHECKING:
    from tailorpo_trainer.spec import TailorPOJob


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
def run(
    file: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    fresh: bool,
    quiet: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Train what a document says on this machine, or go on where it stopped.

    Ctrl-C stops after a checkpoint; the same command then goes on from there.
    """
    if quiet + as_json + no_progress > 1:
        raise click.UsageError("--quiet, --json and --no-progress exclude each other")
    display: Literal["auto", "plain", "json", "quiet"] = (
        "quiet" if quiet else "json" if as_json else "plain" if no_progress else "auto"
    )
    from tailorpo_trainer import document

    job = document.read(file, overrides)
    ignored = cluster_fields(job)
    if ignored and not quiet:
        message(f"{click.format_filename(file)}: only a cluster reads {', '.join(ignored)}: left out here")
    _need_trainer()
    from tailorpo_trainer import train

    train.run(job, output, base=file.parent, fresh=fresh, display=display)


def cluster_fields(job: TailorPOJob) -> list[str]:
    """The fields that say where a run runs, as far as they ask for something else than one process here."""
    from tailorpo_trainer.spec import CLUSTER_FIELDS, Spec

    given = [
        f"spec.{Spec.model_fields[name].alias or name}"
        for name in CLUSTER_FIELDS
        if name in job.spec.model_fields_set and getattr(job.spec, name) != Spec.model_fields[name].default
    ]
    return given + (["spec.checkpoint.secretName"] if job.spec.checkpoint.secret_name else [])


def _need_trainer() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ConfigurationError("the trainer is not installed here: pip install 'tailorpo[trainer]'")
