"""What the pages print does what they say."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tailorpo_trainer import document

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whole_documents_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for found in YAML(typ="safe", pure=True).load_all(block):
            if isinstance(found, dict) and found.get("kind") == "TailorPOJob":
                document.parse(found, str(page))
