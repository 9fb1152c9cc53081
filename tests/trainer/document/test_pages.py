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


def test_the_document_of_the_readme_is_the_demo(tmp_path: Path) -> None:
    """Its pictures and figures stand beside it."""
    [printed] = [block for block in blocks(ROOT / "README.md", "yaml") if "kind: TailorPOJob" in block]
    (tmp_path / "job.yaml").write_text(printed)
    assert document.read(tmp_path / "job.yaml") == document.read(ROOT / "examples" / "demo.yaml")


def test_the_errors_of_the_readme_are_those_of_its_document(tmp_path: Path) -> None:
    [printed] = [block for block in blocks(ROOT / "README.md", "yaml") if "kind: TailorPOJob" in block]
    wrong = printed.replace("steps: 20", "stepz: 20").replace("{name: tailorpo}", "{name: tailorpo, threshold: 0.3}")
    (tmp_path / "job.yaml").write_text(wrong)
    with pytest.raises(document.DocumentError) as caught:
        document.read(tmp_path / "job.yaml")
    shown = [
        line for block in blocks(ROOT / "README.md", "console") for line in block.splitlines() if "job.yaml:" in line
    ]
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whole_documents_are_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for found in YAML(typ="safe", pure=True).load_all(block):
            if isinstance(found, dict) and found.get("kind") == "TailorPOJob":
                document.parse(found, str(page))
