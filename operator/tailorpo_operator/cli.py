"""The operator's commands, beside the trainer's. Nothing large is imported before one runs."""

import json
from pathlib import Path

import click

from tailorpo_operator import naming
from tailorpo_trainer.cli.ending import message
from tailorpo_trainer.exits import ConfigurationError


@click.command(short_help="Show what a document becomes on a cluster.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--attempt", type=click.IntRange(1, 2**31 - 1), default=1, show_default=True, help="Of this attempt, from 1."
)
@click.option(
    "--image", default=naming.IMAGE, show_default=True, help="Trainer image, where spec.template.image names none."
)
@click.option("--namespace", help="Namespace. Default: metadata.namespace, if there is one.")
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="Override a field, such as spec.workers=2; may be repeated. Without VALUE: its default.",
)
def render(file: Path, attempt: int, image: str, namespace: str | None, overrides: tuple[str, ...]) -> None:
    """Print as YAML what the operator makes of the jobs in FILE, without a cluster.

    Only the reference to the job itself, with which its children are deleted, is missing.
    """
    from tailorpo_operator import api, children
    from tailorpo_trainer import document

    if namespace is not None:
        overrides += (f"metadata.namespace={json.dumps(namespace)}",)
    pages: list[str] = []
    for read in document.read_all(file, overrides):
        job = api.Job(metadata=read.metadata.model_dump(exclude_none=True), spec=read.spec)
        try:
            made = [children.service(job), children.attempt(job, attempt, image)]
        except children.TooLarge as error:
            raise ConfigurationError(f"{click.format_filename(file)}: {read.metadata.name}: {error}") from None
        pages += [document.dump_values(child) for child in made if child]
        for warning in children.warnings(job):
            message(f"{read.metadata.name}: {warning}", "warning")
    click.echo("---\n".join(pages), nl=False)


COMMANDS: tuple[click.Command, ...] = (render,)
"""What `tailorpo` has besides the trainer's commands."""
