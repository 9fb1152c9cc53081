"""Writes the dashboards into the chart."""

from tools.dashboards import FOLDER, files

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
