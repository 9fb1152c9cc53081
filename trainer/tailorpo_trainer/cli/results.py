"""`tailorpo sample`, `evaluate`, `report`, `compare`, `estimate`: the commands for before and after a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from tailorpo_trainer import terminal
from tailorpo_trainer.cli.error_exit import message

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(short_help="Draw pictures with a trained model.")
@click.argument("output", type=FOLDER)
@click.option(
    "--prompt", "prompts", multiple=True, help="What to draw; may be repeated. Default: the run's own prompts."
)
@click.option(
    "--images",
    type=click.IntRange(1, 65_536),
    default=16,
    show_default=True,
    help="How many, over the prompts in turn.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise.")
@click.option("--to", type=FOLDER, help="Folder for the pictures. Default: OUTPUT/drawn.")
@click.option("--only-after", is_flag=True, help="Leave out the base model's pictures.")
def sample(output: Path, prompts: tuple[str, ...], images: int, seed: int, to: Path | None, only_after: bool) -> None:
    """Draw pictures with the newest weights in OUTPUT, the base model's on the same noise beside them."""
    from tailorpo_trainer.evaluation import trained

    message(str(trained.sample(output, prompts, images, seed, to or output / "drawn", before=not only_after)))


@click.command(short_help="Measure a trained model on held-out noise.")
@click.argument("output", type=FOLDER)
@click.option(
    "--images", type=click.IntRange(2, 1_000_000), default=256, show_default=True, help="Pictures of each model."
)
@click.option("--prompt", "prompts", multiple=True, help="Prompts to measure on. Default: the run's held-out ones.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the noise. Default: one that training never used.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(output: Path, images: int, prompts: tuple[str, ...], seed: int | None, as_json: bool) -> None:
    """Every reward and diversity of the base model and the trained one, with 95 % intervals and paired differences.

    Of the shipped model also the share of pictures in which its independent judge finds the animal asked for.
    """
    from tailorpo_trainer.evaluation import trained

    comparison = trained.compare(output, images, prompts, seed)
    if as_json:
        from tailorpo_trainer.results.run_folder import finite

        click.echo(json.dumps(finite(comparison.as_dict()), indent=2, allow_nan=False))
        return
    title = (
        f"{comparison.images} pictures on held-out noise: the base model, and after iteration {comparison.iteration}"
    )
    head, rows = ["", "before", "after", "difference"], comparison.table()
    columns = terminal.width(sys.stdout)
    click.echo(terminal.wrap(title, columns))
    for line in terminal.table(head, rows, columns, gap=3):
        click.echo(line)
    for note in comparison.notes():
        click.echo(terminal.wrap(note, columns))


@click.command(short_help="Write a run's report again.")
@click.argument("output", type=FOLDER)
def report(output: Path) -> None:
    """Write OUTPUT/report.html from what the run has recorded so far."""
    from tailorpo_trainer import report as page

    message(str(page.write(output)))


@click.command(short_help="Put runs side by side.")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("compare.html"),
    show_default=True,
    help="The page.",
)
def compare(runs: tuple[Path, ...], to: Path) -> None:
    """One page of several runs at equal images, reward queries, denoiser work and seconds."""
    if len(runs) < 2:
        raise click.UsageError("name two output folders or more")
    from tailorpo_trainer import report as page

    message(str(page.compare(runs, to)))


@click.command(short_help="What a run would cost.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", metavar="PATH=VALUE", multiple=True, help="Override a field; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Denoiser calls, decodes, rewards, FLOPs, memory and checkpoint size of FILE, before paying for it."""
    from tailorpo_trainer import document
    from tailorpo_trainer import estimate as estimating

    estimating.run(document.read(file, overrides), as_json)
