"""What is a path of this machine, and what may be an id on the hub."""

from pathlib import Path

import pytest

from tailorpo_trainer import places
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.rewards.clip_score import ClipScore


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "photos").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["owner/name", "file/name", "name", "owner/name.v1.5"])
def test_what_may_be_an_id(here: Path, name: str) -> None:
    assert places.missing_path(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("./models/x", "is no folder here"),
        ("/models/x", "is no folder here"),
        ("~/models", "is no folder here"),
        ("a/b/c", "is no folder here"),
        ("owner/weights.safetensors", "is no file here"),
        ("weights.CKPT", "is no file here"),
        ("models/cats", "is not in the folder models that is here"),
        ("models/photo", "is not in the folder models that is here, did you mean models/photos?"),
    ],
)
def test_what_is_a_path_that_is_not_there(here: Path, name: str, why: str) -> None:
    assert places.missing_path(name) == why


@pytest.mark.parametrize("name", ["models/photo", "file", "scorer.safetensors"])
def test_a_scorer_is_looked_for_here(here: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^model: .* (is a file|is no file here|is not in the folder models)"):
        ClipScore(model=name)
