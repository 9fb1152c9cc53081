"""`python -m tools.panels`: draws the dashboards from a Prometheus to PNG files."""

import json
import sys
import time
from pathlib import Path

import click

from tools.dashboards import FOLDER
from tools.panels.api import Api, QueryError
from tools.panels.draw import draw, save
from tools.panels.style import THEMES
from tools.panels.variables import Window, filled, seconds


@click.command(help=__doc__)
@click.option("--prometheus", "url", default="http://127.0.0.1:9090", show_default=True, metavar="URL")
@click.option("--dashboard", "names", multiple=True, type=click.Choice(["training", "jobs", "operator"]))
@click.option(
    "--output", default=Path(), type=click.Path(path_type=Path, file_okay=False), help="Folder for the files."
)
@click.option("--theme", "themes", multiple=True, type=click.Choice(list(THEMES)), help="Both unless given.")
@click.option("--last", default="1h", show_default=True, help="How much time is shown, such as 30m.")
@click.option(
    "--until", default=None, type=float, help="The end of that time, in seconds since 1970; now unless given."
)
@click.option(
    "--scrape", default=None, help="Time between two scrapes, such as 1s, where it is not what panels assume."
)
@click.option(
    "--set", "wanted", multiple=True, metavar="NAME=VALUE", help="Choose the value of a variable; repeatable."
)
@click.option("--row", "rows", multiple=True, metavar="HEADING", help="Only the panels below this heading; repeatable.")
def main(
    url: str,
    names: tuple[str, ...],
    output: Path,
    themes: tuple[str, ...],
    last: str,
    until: float | None,
    scrape: str | None,
    wanted: tuple[str, ...],
    rows: tuple[str, ...],
) -> None:
    api, end = Api(url), until or time.time()
    window = Window(end - seconds(last), end, None if scrape is None else seconds(scrape))
    chosen: dict[str, list[str]] = {}
    for each in wanted:
        name, _, value = each.partition("=")
        chosen.setdefault(name, []).append(value)
    output.mkdir(parents=True, exist_ok=True)
    for name in names or ("training", "jobs", "operator"):
        dashboard = json.loads((FOLDER / f"{name}.json").read_text())
        known = {variable["name"] for variable in dashboard["templating"]["list"]}
        values = filled(dashboard, api, window, {name: each for name, each in chosen.items() if name in known})
        for theme in themes or THEMES:
            path = output / f"{name}-{theme}.png"
            save(draw(dashboard, values, api, window, THEMES[theme], rows), path)
            click.echo(path)


if __name__ == "__main__":
    try:
        main()
    except (QueryError, LookupError, OSError) as error:
        sys.exit(f"tools.panels: {error}")
