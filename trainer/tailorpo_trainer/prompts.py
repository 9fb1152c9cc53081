"""The prompts of a run, and which of them an iteration trains on. Does not import torch."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path, PurePath
from typing import Any

from tailorpo_trainer import s3
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.spec.job import Prompts
from tailorpo_trainer.untrusted import parse_json, read_file

MAX_LENGTH = 16_384
"""Most characters of one prompt in a file. A text encoder reads some hundred of them: see `cut`."""
MAX_BYTES = 1 << 28
"""Most bytes of a file of prompts: some million prompts."""
CLIP_TOKENS = 75
"""Of a prompt, what the text encoders of Stable Diffusion read: 77 positions, two of which mark begin and end."""
WORD = re.compile(r"[^\W\d_]+|\d|_+|[^\w\s]+")
"""Words, digits and runs of signs: each is at least one token of CLIP (Radford et al. 2021, their tokenizer)."""
KEY = "prompt"
"""Where the lines of a `.jsonl` file have their prompt, as in the data sets of the field."""
OTHER_FORMATS = frozenset([".csv", ".tsv", ".parquet", ".yaml", ".yml", ".arrow", ".xlsx", ".gz", ".zip"])

ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep",
    "deer", "cow", "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf",
    "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale", "dolphin", "squirrel",
    "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee",
    "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip
"""The prompt set of DDPO (Black et al. 2023), which later work compares on."""


def load(prompts: Prompts, base: Path | None) -> tuple[str, ...]:
    """All prompts of a source; a relative `file` starts from the folder `base`, or the current one.

    Raises `DataError` for a file without prompts, `ConfigurationError` for a source that only a cluster has,
    `UnavailableError` for a store that does not answer.
    """
    if prompts.builtin is not None:
        return builtin(prompts.builtin)
    if prompts.list_ is not None:
        return tuple(prompts.list_)
    if prompts.file is not None:
        return _read(prompts.file, base)
    raise ConfigurationError(
        "spec.prompts.configMapKeyRef: there are ConfigMaps on a cluster only: use `file` or `list` here"
    )


def builtin(name: str) -> tuple[str, ...]:
    """A prompt set of this package. Every fourth animal of the shipped model is held out of `tiny-animals`."""
    if name == "animals":
        return tuple(map(_photo, ANIMALS))
    from tailorpo_trainer.tiny_animals import ANIMALS as TINY

    held_out = name == "tiny-animals-held-out"
    return tuple(_photo(animal) for n, animal in enumerate(TINY) if (n % 4 == 3) == held_out)


@dataclass(frozen=True)
class Cut:
    """Prompts of which the text encoder reads only the beginning.

    Attributes:
        longer: how many of the distinct prompts. total: how many there are.
        alike: how many of the longer ones begin like another prompt, so that both are one to the model.
        tokens: how many tokens of a prompt the encoder reads.
        at_least: whether the prompts' words were counted, each of which is one token or more.
    """

    longer: int
    total: int
    alike: int
    tokens: int
    at_least: bool = False

    @property
    def warning(self) -> str | None:
        """One sentence, or None if no prompt is too long."""
        if not self.longer:
            return None
        text = (
            f"{'at least ' if self.at_least else ''}{self.longer} of {self.total} prompts are longer than the "
            f"{self.tokens} tokens that the model's text encoder reads: the rest of them has no effect"
        )
        return f"{text}; {self.alike} of them begin like another, and are the same prompt to it" if self.alike else text


def cut(
    prompts: Iterable[str], tokens: int = CLIP_TOKENS, tokenize: Callable[[str], Sequence[Any]] | None = None
) -> Cut:
    """Counts what does not fit into `tokens` tokens. tokenize: the model's; None to count words and signs instead."""
    distinct = list(dict.fromkeys(prompts))
    split = tokenize or WORD.findall
    begins = [tuple(split(prompt)) for prompt in distinct]
    known = Counter(begin[:tokens] for begin in begins)
    longer = [begin for begin in begins if len(begin) > tokens]
    alike = 0 if tokenize is None else sum(known[begin[:tokens]] > 1 for begin in longer)
    return Cut(len(longer), len(distinct), alike, tokens, at_least=tokenize is None)


def digest(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts in their order, as JSON."""
    return sha256(json.dumps(list(prompts), ensure_ascii=True).encode()).hexdigest()


def changes(before: Sequence[str], now: Sequence[str]) -> str | None:
    """What is new and what is gone, as a clause; None if the prompts are the same in the same order."""
    if list(before) == list(now):
        return None
    old, new = set(before), set(now)
    if old == new:
        return f"the {len(new)} distinct prompts are the same, but stand in another order or number"
    return f"{len(new - old)} are new and {len(old - new)} are gone, {len(old & new)} stay"


def draw(prompts: Sequence[str], seed: int, iteration: int, count: int) -> list[int]:
    """Indices of the prompts that iteration `iteration` trains on: a function of the arguments alone.

    The prompts are shuffled, and again whenever all are used up. So the counts of any two prompts never differ by more
    than one. Iteration i starts at position i * count, so neither a resume nor a batch size changes what is drawn.
    """
    size = len(prompts)
    permutations: dict[int, list[int]] = {}
    drawn = []
    for position in range(iteration * count, (iteration + 1) * count):
        number, index = divmod(position, size)
        if number not in permutations:
            permutations[number] = _shuffled(size, f"{seed}/{number}")
        drawn.append(permutations[number][index])
    return drawn


def number(prompt: str) -> int:
    """A number in [0, 2^63) that stands for a prompt's text wherever that must be a tensor."""
    return int.from_bytes(blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def _shuffled(count: int, key: str) -> list[int]:
    # Sorted by a hash, since the result of `random.shuffle` may change from one version of Python to the next.
    return sorted(range(count), key=lambda n: blake2b(f"tailorpo/prompts/{key}/{n}".encode()).digest())


def _photo(animal: str) -> str:
    return f"a photo of {'an' if animal[0] in 'aeiou' else 'a'} {animal}"


def _read(file: str, base: Path | None) -> tuple[str, ...]:
    """The prompts of a file, in the format that its extension names: `.json`, `.jsonl`, or text with one a line."""
    path: Path | str = file if file.startswith(s3.SCHEME) else (base or Path()) / file
    where = f"prompts file {path}"
    try:
        data = read_file(path, MAX_BYTES) if isinstance(path, Path) else s3.read(path, where, MAX_BYTES)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}:{line_number}: is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    extension = PurePath(file).suffix.lower()
    if extension in OTHER_FORMATS:
        raise DataError(f"{where}: {extension} is not read: give text with one prompt a line, .jsonl or .json")
    kept = [(number, prompt.strip()) for number, prompt in _prompts(text, extension, where) if prompt.strip()]
    for number, prompt in kept:
        if len(prompt) > MAX_LENGTH:
            raise DataError(f"{where}:{number}: is too long: {len(prompt)} characters, at most {MAX_LENGTH}")
    if not kept:
        raise DataError(f"{where}: holds no prompt: write one a line")
    return tuple(prompt for _, prompt in kept)


def _prompts(text: str, extension: str, where: str) -> Iterator[tuple[int, str]]:
    """The number and the prompt of each line, or of each entry of a JSON list."""
    if extension == ".json":
        values = _json(text, where)
        if not isinstance(values, list):
            raise DataError(f"{where}: must be a list of prompts, or of objects with a key {KEY!r}")
        yield from (
            (number, _prompt(value, f"{where}: entry {number}")) for number, value in enumerate(values, start=1)
        )
        return
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if extension in (".jsonl", ".ndjson"):
            if stripped:
                yield number, _prompt(_json(stripped, f"{where}:{number}"), f"{where}:{number}")
        elif not stripped.startswith("#"):
            if stripped.startswith("{") and stripped.endswith("}") and _is_object(stripped):
                raise DataError(f"{where}:{number}: is JSON, not a prompt: name the file .jsonl to have {KEY!r} read")
            yield number, stripped


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}") from None


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False  # a prompt may be in braces


def _prompt(value: object, where: str) -> str:
    found = value.get(KEY) if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise DataError(f"{where}: must be text, or an object with a key {KEY!r}")
    return " ".join(found.split("\n"))
