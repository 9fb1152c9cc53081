"""Draws the dashboards of `docs/monitoring.md`: `python -m tests.monitoring.pictures`. Takes a quarter of an hour.

A real training of the shipped model and a real operator with jobs of all kinds, scraped by a real Prometheus.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from tests.cluster.control_plane import control_plane
from tests.monitoring.scene import NAMESPACE, scene
from tests.operator.installed import rights, serve
from tools.dashboards import FOLDER
from tools.panels.draw import draw, save
from tools.panels.style import THEMES
from tools.panels.variables import Window, filled

ROOT = Path(__file__).parents[2]
SCRAPE = 0.5


def demo(iterations: int) -> dict[str, Any]:
    """The job of `make demo` with more and smaller iterations, and more figures of each kind."""
    job: dict[str, Any] = YAML(typ="safe").load(ROOT / "examples" / "demo.yaml")
    job["metadata"]["namespace"] = NAMESPACE
    spec = job["spec"]
    spec["training"] = {"iterations": iterations, "promptsPerIteration": 8}
    spec["sampling"]["steps"] = 10
    spec["evaluation"] |= {"everyIterations": 3, "images": 16}
    spec["checkpoint"]["everyIterations"] = 4
    return job


@click.command(help=__doc__)
@click.option("--iterations", default=30, show_default=True)
@click.option("--output", default=ROOT / "docs" / "images", type=click.Path(path_type=Path))
@click.option("--themes", default="light", show_default=True, help="Separated by commas.")
def main(iterations: int, output: Path, themes: str) -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder, control_plane() as plane:
        serve(plane)
        with scene(plane, rights(plane), lambda script: demo(iterations), Path(folder)) as made:
            job = made.training.name
            steps = f'max(tailorpo_step{{job_name="{job}"}})'
            last = 0.0
            while made.training.running and last < iterations - 0.5:
                time.sleep(5)
                if found := made.api.instant(steps):
                    last = found[0].points[0][1]
                    click.echo(f"{time.time() - begun:.0f} s: {last:.0f} of {iterations} iterations", err=True)
            started = made.api.instant(
                f'min(min_over_time(tailorpo_attempt_start_timestamp_seconds{{job_name="{job}"}}[1h]))'
            )
            window = Window(started[0].points[0][1] - 10, time.time(), SCRAPE)
            for path in sorted(FOLDER.glob("*.json")):
                dashboard = json.loads(path.read_text())
                known = {each["name"] for each in dashboard["templating"]["list"]}
                wanted = {"cluster": ["strict"], "job": [job], "smoothing": ["1m"]}
                values = filled(
                    dashboard, made.api, window, {name: value for name, value in wanted.items() if name in known}
                )
                for theme in themes.split(","):
                    suffix = "" if theme == "light" else f"-{theme}"
                    target = output / f"dashboard-{path.stem}{suffix}.png"
                    save(draw(dashboard, values, made.api, window, THEMES[theme]), target)
                    click.echo(target)


if __name__ == "__main__":
    main()
