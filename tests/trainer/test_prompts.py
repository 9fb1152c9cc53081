"""Where prompts come from, and that each is drawn as often as the others."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorpo_trainer import prompts, tiny_animals
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.spec.job import ConfigMapKey, Prompts


def file_prompts(path: Path | str) -> Prompts:
    return Prompts(file=str(path))


def test_the_animals_of_the_ddpo_paper() -> None:
    loaded = prompts.load(Prompts(builtin="animals"), None)
    assert len(set(loaded)) == 45
    assert loaded[0] == "a photo of a cat"
    assert "a photo of an ant" in loaded


def test_every_fourth_animal_of_the_shipped_model_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_animals, "ANIMALS", ("cat", "dog", "horse", "owl", "bee"))
    assert prompts.builtin("tiny-animals-held-out") == ("a photo of an owl",)
    assert prompts.builtin("tiny-animals") == tuple(f"a photo of a {name}" for name in ("cat", "dog", "horse", "bee"))


def test_the_shipped_models_animals_are_split_in_two() -> None:
    training, held_out = prompts.builtin("tiny-animals"), prompts.builtin("tiny-animals-held-out")
    assert len(training) == 3 * len(held_out)
    assert not set(training) & set(held_out)
    assert len({*training, *held_out}) == len(tiny_animals.ANIMALS)


def test_a_list_is_taken_as_it_is() -> None:
    assert prompts.load(Prompts.model_validate({"list": [" a", "# b", "a"]}), None) == (" a", "# b", "a")


def test_a_file_beside_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa cat\r\n\r\n  # no prompt\r\n \tein Bär # mit Hut \n".encode())
    expected = ("a cat", "ein Bär # mit Hut")
    assert prompts.load(file_prompts("p.txt"), tmp_path) == expected
    assert prompts.load(file_prompts(tmp_path / "p.txt"), Path("elsewhere")) == expected
    monkeypatch.chdir(tmp_path)
    assert prompts.load(file_prompts("p.txt"), None) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts file {}: cannot be read: No such file or directory"),
        (b"", "prompts file {}: holds no prompt: write one a line"),
        (b"# a\n\n  \n", "prompts file {}: holds no prompt: write one a line"),
        (b"a cat\na d\xf6g\n", "prompts file {}:2: is not UTF-8 text: invalid start byte"),
        (b"a\n\n" + b"x" * 1025, "prompts file {}:3: is too long: 1025 characters, at most 1024"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prompts.load(file_prompts("p.txt"), tmp_path)
    assert str(caught.value) == message.format(file)


def test_the_longest_line_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("ä" * 1024)
    assert prompts.load(file_prompts("p.txt"), tmp_path) == ("ä" * 1024,)


def test_a_folder_is_no_prompts_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory$"):
        prompts.load(file_prompts(tmp_path), None)


def test_sources_that_one_machine_has_not() -> None:
    with pytest.raises(ConfigurationError, match="on a cluster only: use `file` or `list` here"):
        prompts.load(Prompts(config_map_key_ref=ConfigMapKey(name="a")), None)


@given(st.integers(1, 50), st.integers(0, 2**53 - 1), st.integers(1, 120), st.integers(1, 12))
def test_prompts_are_drawn_equally_often(deck: int, seed: int, count: int, iterations: int) -> None:
    drawn: Counter[int] = Counter(range(deck))
    for iteration in range(iterations):
        drawn.update(prompts.draw(["x"] * deck, seed, iteration, count))
        assert max(drawn.values()) - min(drawn.values()) <= 1


@given(st.integers(0, 2**53 - 1), st.integers(1, 40), st.integers(0, 30))
def test_what_an_iteration_draws_depends_on_no_other(seed: int, count: int, iteration: int) -> None:
    names = [str(n) for n in range(24)]
    stream = prompts.draw(names, seed, 0, count * 40)
    assert prompts.draw(names, seed, iteration, count) == stream[iteration * count : (iteration + 1) * count]


def test_the_order_is_a_promise() -> None:
    """A resumed run must draw what the first would have drawn, with a later Python or release too."""
    assert prompts.draw(["x"] * 8, 0, 0, 8) == ORDER
    assert prompts.draw(["x"] * 8, 1, 0, 8) != ORDER
    assert prompts.draw(["x"] * 8, 0, 1, 8) != ORDER


ORDER = [4, 3, 0, 5, 2, 7, 1, 6]
