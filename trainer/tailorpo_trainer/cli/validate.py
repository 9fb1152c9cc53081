"""`tailorpo validate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tailorpo_trainer.cli.error_exit import message
from tailorpo_trainer.cli.run import need_trainer

if TYPE_CHECKING:
    from tailorpo_trainer.document import Problem
    from tailorpo_trainer.spec.job import Spec, TailorPOJob


@click.command(short_help="Check documents.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--here",
    is_flag=True,
    help="Also look for what a run on this machine would need: rewards, models, prompts, endpoints, the storage.",
)
def validate(files: tuple[Path, ...], here: bool) -> None:
    """Check documents: says everything that is wrong in them, each problem with its line.

    With --here a document is wrong too if it names what this machine can neither find nor reach. No weights are read.

    Exit status 0 if all are right, 78 if not.
    """
    from tailorpo_trainer import document

    if here:
        need_trainer()

    problems: list[document.Problem] = []
    for file in files:
        try:
            jobs = document.read_all(file)
        except document.DocumentError as error:
            problems += error.problems
            continue
        name = click.format_filename(file)
        missing = [problem for job in jobs for problem in _missing(job, name, file.parent)] if here else []
        problems += missing
        if not missing:
            click.echo(f"{name}: ok ({len(jobs)} job{'' if len(jobs) == 1 else 's'})")
        for job in jobs:
            for warning in _warnings(job.spec, file.parent, names=not here):
                message(f"{name}: {job.metadata.name}: {warning}", "warning")
    if problems:
        raise document.DocumentError(problems)


def _missing(job: TailorPOJob, name: str, base: Path) -> Iterator[Problem]:
    """What the document names and this machine has not."""
    from tailorpo_trainer.cli import here
    from tailorpo_trainer.document import Problem

    for text in here.problems(job, base):
        yield Problem(name, None, "", f"{job.metadata.name}: {text}")


def _warnings(spec: Spec, base: Path, names: bool) -> Iterator[str]:
    """What is allowed and most likely a mistake. names: whether to include those of rewards and models."""
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
    if names:
        yield from _misspelt(spec)


def _misspelt(spec: Spec) -> Iterator[str]:
    """Names that another machine may know, and that resemble one that every machine knows."""
    from tailorpo_trainer.rewards import registry
    from tailorpo_trainer.spec.job import Model

    for field, terms in (("spec.rewards", spec.rewards), ("spec.evaluation.rewards", spec.evaluation.rewards)):
        for index, reward in enumerate(terms):
            if meant := registry.misspelt(reward.name):
                yield (
                    f"{field}[{index}].name: no reward {reward.name!r} is built in, nor installed here: did you mean "
                    f"{meant!r}?"
                )
    shipped, given = Model().name, {"spec.model": spec.model.name}
    if spec.model.scoring_decoder is not None:
        given["spec.model.scoringDecoder"] = spec.model.scoring_decoder.name
    for field, name in given.items():
        if name != shipped and registry.similar(name, [shipped]) and not Path(name).exists():
            yield f"{field}.name: {name!r} is no folder here: did you mean {shipped!r}?"
