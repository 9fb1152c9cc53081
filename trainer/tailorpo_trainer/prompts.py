"""The prompts of a run, and which of them an iteration trains on. Does not import torch."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from tailorpo_trainer import s3
from tailorpo_trainer.errors import ConfigurationError, DataError
from tailorpo_trainer.spec.job import Prompts

MAX_LENGTH = 1024
"""Most characters of one prompt, in a file as in the document."""

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


def _shuffled(count: int, key: str) -> list[int]:
    # Sorted by a hash, since the result of `random.shuffle` may change from one version of Python to the next.
    return sorted(range(count), key=lambda n: blake2b(f"tailorpo/prompts/{key}/{n}".encode()).digest())


def _photo(animal: str) -> str:
    return f"a photo of {'an' if animal[0] in 'aeiou' else 'a'} {animal}"


def _read(file: str, base: Path | None) -> tuple[str, ...]:
    """The lines of a file, without blank ones and those that begin with `#`."""
    path: Path | str = file if file.startswith(s3.SCHEME) else (base or Path()) / file
    try:
        data = path.read_bytes() if isinstance(path, Path) else s3.read(path, f"prompts file {path}")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"prompts file {path}:{line_number}: is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise DataError(f"prompts file {path}: cannot be read: {error.strerror}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    for number, line in kept:
        if len(line) > MAX_LENGTH:
            raise DataError(f"prompts file {path}:{number}: is too long: {len(line)} characters, at most {MAX_LENGTH}")
    if not kept:
        raise DataError(f"prompts file {path}: holds no prompt: write one a line")
    return tuple(line for _, line in kept)
