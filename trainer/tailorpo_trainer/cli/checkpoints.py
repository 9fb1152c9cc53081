"""`tailorpo checkpoints`: list the checkpoints of a storage, verify them, export the adapter of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tailorpo_trainer import terminal
from tailorpo_trainer.cli.error_exit import message

if TYPE_CHECKING:
    from tailorpo_trainer.checkpoint import Store


def storage(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and the options that say where a storage is."""
    options = [
        click.argument("uri"),
        click.option("--endpoint", metavar="URL", help="The S3 server. Default: AWS_ENDPOINT_URL, or Amazon's own."),
        click.option("--region", help="The bucket's region. Default: AWS_REGION, or the profile's."),
        click.option(
            "--ca-file",
            type=click.Path(exists=True, dir_okay=False),
            help="PEM file of the certificates to trust. Default: AWS_CA_BUNDLE, or the system's.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(short_help="List, verify and export checkpoints.")
def checkpoints() -> None:
    """Look at the checkpoints at URI: a folder, s3://bucket/prefix, or a run's output folder.

    Credentials of S3 are found as by any tool of Amazon's: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a
    role.
    """


@checkpoints.command("ls", short_help="List them.")
@storage
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(uri: str, endpoint: str | None, region: str | None, ca_file: str | None, as_json: bool) -> None:
    """List all checkpoints: attempt, step, time, size, evaluation, and which one a resume would take.

    Sizes are compared with the manifests; the bytes are read by `verify` alone.
    """
    from tailorpo_trainer.checkpoint import inspection

    rows = inspection.list_steps(_find(uri, endpoint, region, ca_file))
    if as_json:
        click.echo(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    if not rows:
        message("no checkpoint yet")
        return
    head = ["", "ATTEMPT", "STEP", "TIME", "SIZE", "EVALUATION", "STATE"]
    cells = [
        [
            "*" if row.resume else "",
            str(row.attempt),
            str(row.step),
            row.time or "",
            "" if row.size is None else _size(row.size),
            "" if row.evaluation is None else f"{row.evaluation:.6g}",
            row.problem or "complete",
        ]
        for row in rows
    ]
    for line in terminal.table(head, cells, terminal.width(sys.stdout), numbers=False):
        click.echo(line)
    click.echo("* what a resume would take" if any(row.resume for row in rows) else "a resume would begin from nothing")


@checkpoints.command("verify", short_help="Read and check every byte.")
@storage
def verify(uri: str, endpoint: str | None, region: str | None, ca_file: str | None) -> None:
    """Compare every object with the size and the SHA-256 of its manifest.

    Exit status 0 if all are right; 65 if not, after naming each that is damaged or missing.
    """
    from tailorpo_trainer import checkpoint
    from tailorpo_trainer.checkpoint import inspection
    from tailorpo_trainer.errors import DataError

    store = _find(uri, endpoint, region, ca_file)
    bad: list[str] = []
    refs = checkpoint.checkpoints(store)
    for ref in refs:
        problems = list(inspection.verify(store, ref))
        click.echo(f"{store.uri(ref.prefix)}: {'damaged' if problems else 'ok'}")
        bad += problems
    if bad:
        raise DataError("\n".join(bad))
    message(f"{len(refs)} checkpoint{'' if len(refs) == 1 else 's'}, all as their manifests say")


@checkpoints.command("export", short_help="Write a LoRA that diffusers loads.")
@storage
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the LoRA.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt. Default: of any.")
@click.option("--step", type=click.IntRange(1), help="After this iteration. Default: what a resume would take.")
def export(
    uri: str,
    endpoint: str | None,
    region: str | None,
    ca_file: str | None,
    to: Path,
    attempt: int | None,
    step: int | None,
) -> None:
    """Write a checkpoint's adapter (its average, where one is kept) for `pipe.load_lora_weights(DIR)`."""
    store = _find(uri, endpoint, region, ca_file)
    from tailorpo_trainer.models import export as exporting

    exported = exporting.export(store, to, attempt, step)
    message(f"{to}: the adapter of {exported.uri}")


def _find(uri: str, endpoint: str | None, region: str | None, ca_file: str | None) -> Store:
    from tailorpo_trainer import s3
    from tailorpo_trainer.checkpoint import inspection
    from tailorpo_trainer.results import locations

    names = {"endpoint": "--endpoint", "region": "--region", "ca_file": "--ca-file"}
    store = locations.find(uri, s3.Settings(endpoint, region, ca_file=ca_file, names=names))
    inspection.require(store)
    return store


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
