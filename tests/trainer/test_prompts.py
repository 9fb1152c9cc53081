"""Where prompts come from, and that each is drawn as often as the others."""

import os
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
        (b"a\n\n" + b"x" * 16_385, "prompts file {}:3: is too long: 16385 characters, at most 16384"),
        (b'{"prompt": ""}', "prompts file {}:1: is JSON, not a prompt: name the file .jsonl to have 'prompt' read"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prompts.load(file_prompts("p.txt"), tmp_path)
    assert str(caught.value) == message.format(file)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "p.jsonl",
            '{"prompt": "a cat", "seed": 3}\n\n"a dog"\n{"prompt": " two\\nlines "}\n',
            ("a cat", "a dog", "two lines"),
        ),
        ("p.json", '["a cat", {"prompt": "a dog"}]', ("a cat", "a dog")),
        ("p.txt", "{a cat}\n{}x\n[1]\n", ("{a cat}", "{}x", "[1]")),
        ("p", "a cat\n", ("a cat",)),
    ],
)
def test_the_extension_says_how_to_read(tmp_path: Path, name: str, content: str, expected: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(content)
    assert prompts.load(file_prompts(name), tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', ":2: must be text, or an object with a key 'prompt'"),
        ("p.jsonl", '{"prompt": "a"}\na cat\n', ":2: is not JSON: Expecting value"),
        ("p.jsonl", "[" * 100_000, ":1: is not JSON: is nested too deeply"),
        ("p.json", '["a", 3]', ": entry 2: must be text, or an object with a key 'prompt'"),
        ("p.json", '{"prompt": "a"}', ": must be a list of prompts, or of objects with a key 'prompt'"),
        ("p.csv", "prompt\na cat\n", ": .csv is not read: give text with one prompt a line, .jsonl or .json"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        prompts.load(file_prompts(name), tmp_path)
    assert str(caught.value).startswith(f"prompts file {tmp_path / name}{message}")


def test_a_file_too_large_or_of_another_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    for name, message in (("fifo", "is not a regular file"), ("large", "has 1,073,741,824 bytes, and at most")):
        with pytest.raises(DataError, match=rf"prompts file .*{name}: cannot be read: {message}"):
            prompts.load(file_prompts(name), tmp_path)


def test_the_longest_line_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("ä" * 16_384)
    assert prompts.load(file_prompts("p.txt"), tmp_path) == ("ä" * 16_384,)


def test_a_folder_is_no_prompts_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory$"):
        prompts.load(file_prompts(tmp_path), None)


def test_prompts_that_are_longer_than_the_text_encoder_reads() -> None:
    long = "very " * 75
    assert prompts.cut([long, "a cat"]).warning is None
    assert prompts.cut([f"{long} old cat", f"{long} old dog", "a cat", "a cat"]).warning == (
        "at least 2 of 3 prompts are longer than the 75 tokens that the model's text encoder reads: the rest of them "
        "has no effect"
    )
    letters = prompts.cut(["abcd", "abce", "ab", "xyz"], 3, list)
    assert (letters.longer, letters.total, letters.alike) == (2, 4, 2)
    assert letters.warning == (
        "2 of 4 prompts are longer than the 3 tokens that the model's text encoder reads: the rest of them has no "
        "effect; 2 of them begin like another, and are the same prompt to it"
    )


def test_counted_words_are_never_more_than_tokens() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_animals.PIPELINE / "tokenizer")
    for text in ("it's 2 cats!!! (a_b) ünïted", "photo, of: a cat--dog 1234", *prompts.ANIMALS):
        assert len(prompts.WORD.findall(text)) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


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
