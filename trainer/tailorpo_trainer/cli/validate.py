"""`tailorpo validate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tailorpo_trainer.cli.error_exit import message

if TYPE_CHECKING:
    from tailorpo_trainer.spec.job import Spec


@click.command(short_help="Check documents.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> None:
    """Check documents: says everything that is wrong in them, each problem with its line.

    Exit status 0 if all are right, 78 if not.
    """
    from tailorpo_trainer import document

    problems: list[document.Problem] = []
    for file in files:
        try:
            jobs = document.read_all(file)
        except document.DocumentError as error:
            problems += error.problems
        else:
            count = f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}"
            click.echo(f"{click.format_filename(file)}: ok ({count})")
            for job in jobs:
                for warning in _warnings(job.spec, file.parent):
                    message(f"{click.format_filename(file)}: {job.metadata.name}: {warning}", "warning")
    if problems:
        raise document.DocumentError(problems)


def _warnings(spec: Spec, base: Path) -> Iterator[str]:
    """What is allowed and most likely a mistake."""
    from tailorpo_trainer import prompts, s3
    from tailorpo_trainer.errors import DataError
    from tailorpo_trainer.spec.cautions import cautions

    yield from cautions(spec)
    for path, source in (("spec.prompts", spec.prompts), ("spec.evaluation.prompts", spec.evaluation.prompts)):
        here = source is not None and source.file is not None and not source.file.startswith(s3.SCHEME)
        if source is None or not (source.list_ or (here and (base / str(source.file)).exists())):
            continue
        try:
            if warning := prompts.cut(prompts.load(source, base)).warning:
                yield f"{path}: {warning}"
        except DataError as error:
            yield f"{path}: {error}"
