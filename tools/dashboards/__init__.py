"""The dashboards of Grafana in the chart, written by `python -m tools.dashboards`."""

from pathlib import Path

from tools.dashboards import jobs, operator, training

FOLDER = Path(__file__).parents[2] / "charts" / "tailorpo" / "files" / "dashboards"


def files() -> dict[Path, str]:
    """The text of each file."""
    made = {"training": training.dashboard(), "jobs": jobs.dashboard(), "operator": operator.dashboard()}
    return {FOLDER / f"{name}.json": each.to_json() for name, each in made.items()}
