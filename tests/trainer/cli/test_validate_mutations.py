"""Good documents, damaged at random: `tailorpo validate` says what is wrong with them, and never falls over itself.

A mutation either spoils the values (a key renamed, a value swapped for a strange one, a branch cut or moved) or the
text (a character or line lost, doubled or put in).
"""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tailorpo_trainer import cli, document
from tests.documents import GOOD, slots, spoil_values

SNIPPETS = [
    "\t", "\n", " ", "  ", ":", ": ", "- ", "-", "#", "'", '"', "{", "}", "[", "]", ",", "&a ", "*a", "!!str ", "!x ",
    "|", ">-", "%", "@", "`", "---\n", "...\n", "? ", "<<: ", "\\", "\0", "\x07", "\u2028", "\ufeff",
    "\r", "~", ".nan", "1e999", "\U0001f431",
]  # fmt: skip


def spoil_text(text: str, rng: random.Random) -> str:
    """One mutation of the text."""
    at = rng.randrange(len(text) + 1)
    lines = text.split("\n")
    line = rng.randrange(len(lines))
    match rng.choice(["cut", "insert", "insert", "lose", "double", "indent", "swap"]):
        case "cut":
            return text[:at]
        case "insert":
            return text[:at] + rng.choice(SNIPPETS) + text[at:]
        case "lose":
            return text[:at] + text[at + rng.randrange(1, 4) :]
        case "double":
            return "\n".join([*lines[: line + 1], *lines[line:]])
        case "indent":
            return "\n".join([*lines[:line], rng.choice([" ", "  ", "\t"]) + lines[line], *lines[line + 1 :]])
    other = rng.randrange(len(lines))
    lines[line], lines[other] = lines[other], lines[line]
    return "\n".join(lines)


def render(data: Any, rng: random.Random) -> str:
    """The values as JSON, or as YAML in block style with JSON scalars."""
    if rng.random() < 0.2:
        return json.dumps(data, indent=rng.choice([None, 2, "\t"]))
    return block(data, 0).lstrip("\n") + "\n"


def block(value: Any, depth: int) -> str:
    indent = "\n" + "  " * depth
    if isinstance(value, dict) and value:
        return "".join(f"{indent}{json.dumps(key)}: {block(entry, depth + 1)}" for key, entry in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{indent}- {block(entry, depth + 1)}" for entry in value)
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9]*", value):
        return value
    return {"NaN": ".nan", "Infinity": ".inf"}.get(text := json.dumps(value), text)


def mutant(seed: int) -> str:
    """A good document with one to three mutations."""
    rng = random.Random(seed)
    data = deepcopy(rng.choice(GOOD))
    if rng.random() < 0.6:
        for _ in range(rng.choice([1, 1, 2, 3])):
            if slots(data):
                spoil_values(data, rng)
        return render(data, rng)
    text = render(data, rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        text = spoil_text(text, rng)
    return text


def judge(file: Path, status: int, out: str, err: str) -> None:
    """What must hold whatever the document was."""
    assert "Traceback" not in out + err
    if status == 0:
        assert out.startswith(f"{file}: ok (")
        assert all(line.startswith("warning: ") for line in err.splitlines())
        for job in document.read_all(file):
            again = file.with_name("again.yaml")
            again.write_text(document.dump(job), encoding="utf-8")
            assert document.read(again) == job
        return
    assert status == 78
    assert out == ""
    text = file.read_bytes().decode(errors="replace")
    lines = text.count("\n") + text.count("\r") + 1
    for problem in err.splitlines():
        found = re.fullmatch(rf"{re.escape(str(file))}(?::(\d+))?: (?:[\w.\[\]-]+: )?.+", problem)
        assert found, problem
        assert found[1] is None or 1 <= int(found[1]) <= lines


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_damaged_document_is_refused_in_words(tmp_path: Path, seed: int) -> None:
    text = mutant(seed)
    note(text)
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["validate", str(file)])
    judge(file, status, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("seed", range(5))
def test_the_same_in_a_process_of_its_own(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(mutant(seed).encode(errors="surrogatepass"))
    program = "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(file)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    judge(file, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_the_documents_are_good_before(tmp_path: Path, number: int) -> None:
    file = tmp_path / "job.yaml"
    for seed in range(4):
        file.write_text(render(GOOD[number], random.Random(seed)))
        assert document.read(file).spec.method.name == GOOD[number]["spec"]["method"]["name"]


def test_the_mutations_do_damage() -> None:
    """Else the test above would say little."""
    texts = {mutant(seed) for seed in range(300)}
    assert len(texts) > 250
