"""Writes what is generated of the chart and of `manifests/`."""

from tools.chart.manifests import files
from tools.chart.pages import pages

if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
    for path, text in files().items():  # of the chart as it is now
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
