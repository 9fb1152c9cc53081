"""What README and the pages print can be typed, and does what is said."""

import re
import shlex
from pathlib import Path

import click
import pytest

from tailorpo_trainer import cli, document
from tailorpo_trainer.spec import rules

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
WHOLE, FRAGMENT = (text for language, text in BLOCKS if language == "yaml")


def test_the_document_of_the_readme_is_the_demo(tmp_path: Path) -> None:
    """Its results are those that the README shows."""
    (tmp_path / "job.yaml").write_text(WHOLE, encoding="utf-8")
    ours, demo = document.read(tmp_path / "job.yaml"), document.read(ROOT / "examples" / "demo.yaml")
    assert ours.metadata.name == demo.metadata.name
    assert rules.resolve(ours.spec) == rules.resolve(demo.spec)


def test_the_error_of_the_readme_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = WHOLE.replace("{name: tailorpo}", "{name: tailorpo, threshold: 0.3}").replace("{steps:", "{stepz:")
    assert wrong.count("\n") == WHOLE.count("\n")
    Path("job.yaml").write_text(wrong, encoding="utf-8")
    assert cli.main(["validate", "job.yaml"]) == 78
    shown = next(text for _, text in BLOCKS if text.startswith("$ tailorpo validate job.yaml\n"))
    assert shown.partition("\n")[2] == capsys.readouterr().err


def test_the_fragment_for_stable_diffusion_is_right(tmp_path: Path) -> None:
    head = WHOLE.partition("spec:")[0]
    (tmp_path / "job.yaml").write_text(head + FRAGMENT, encoding="utf-8")
    assert document.read(tmp_path / "job.yaml").spec.model.name == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def commands(page: str) -> list[list[str]]:
    """The arguments of each `tailorpo` that a page shows in a block or in a line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    lines = [line.removeprefix("$ ") for line in blocks] + re.findall(r"`(tailorpo [^`\n]+)`", text)
    return [
        shlex.split(re.sub(r"[\[\]…]", "", line), comments=True)[1:] for line in lines if re.match(r"tailorpo \w", line)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist_with_their_options(page: str) -> None:
    for arguments in commands(page):
        command: click.Command = cli.app
        context = click.Context(cli.app, info_name="tailorpo")
        rest = list(arguments)
        while isinstance(command, click.Group) and rest:
            name = rest.pop(0)
            found = command.get_command(context, name)
            assert found is not None, f"{page}: no command {name} of {arguments}"
            command, context = found, click.Context(found, parent=context, info_name=name)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert used <= known | {"--help"}, f"{page}: {arguments}"


def test_there_are_commands_to_check() -> None:
    assert len([arguments for page in PAGES for arguments in commands(page)]) > 30
