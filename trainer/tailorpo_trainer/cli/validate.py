"""`tailorpo validate`."""

from pathlib import Path

import click


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
    if problems:
        raise document.DocumentError(problems)
