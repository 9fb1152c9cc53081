"""The pictures of the dashboards, and one page with all that the demo has left."""

import html
import json
import time
from pathlib import Path

from tools.dashboards import FOLDER
from tools.panels.api import Api
from tools.panels.draw import draw, save
from tools.panels.style import THEMES
from tools.panels.variables import Window, filled

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>TailorPO on a cluster of this machine</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 0 auto; padding: 1rem; }}
  img {{ width: 100%; height: auto; border: 1px solid #8884; }}
  .scroll {{ overflow-x: auto; }}
  .scroll img {{ min-width: 900px; }}
</style>
<h1>TailorPO on a cluster of this machine</h1>
<p><a href="results/report.html">The report of the job</a>, and the three dashboards of the chart, drawn from the
Prometheus that watched it.</p>
{sections}
</html>
"""


def pictures(api: Api, folder: Path, begun: float, scrape: float, job: str) -> list[Path]:
    """Draws each dashboard from what was scraped since then; returns the files."""
    window, made = Window(begun, time.time(), scrape), list[Path]()
    for name in ("training", "jobs", "operator"):
        dashboard = json.loads((FOLDER / f"{name}.json").read_text())
        known = {each["name"] for each in dashboard["templating"]["list"]}
        wanted = {key: value for key, value in {"job": [job], "smoothing": ["1m"]}.items() if key in known}
        target = folder / f"dashboard-{name}.png"
        save(draw(dashboard, filled(dashboard, api, window, wanted), api, window, THEMES["light"]), target)
        made.append(target)
    return made


def write(folder: Path, images: list[Path]) -> Path:
    """The page; returns its path."""
    sections = "\n".join(
        f'<h2>{html.escape(image.stem.removeprefix("dashboard-").capitalize())}</h2>\n<div class="scroll">'
        f'<a href="{image.name}"><img src="{image.name}" alt="Dashboard {html.escape(image.stem)}"></a></div>'
        for image in images
    )
    path = folder / "index.html"
    path.write_text(PAGE.format(sections=sections))
    return path
