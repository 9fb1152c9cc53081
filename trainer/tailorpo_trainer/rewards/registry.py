"""The registry of rewards: built-in ones and installed plug-ins. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from tailorpo_trainer.errors import ConfigurationError

GROUP = "tailorpo.rewards"
"""Entry point group of plug-ins."""


@dataclass(frozen=True)
class Builtin:
    """The location of a built-in reward's class, and the fields of its spec that the class takes by keyword."""

    module: str
    attribute: str
    differentiable: bool
    fields: tuple[str, ...] = ()


BUILTIN = {
    "clip-score": Builtin("tailorpo_trainer.rewards.clip_score", "ClipScore", True, ("model",)),
    "colourfulness": Builtin("tailorpo_trainer.rewards.colourfulness", "Colourfulness", True),
    "http": Builtin(
        "tailorpo_trainer.rewards.http",
        "HttpReward",
        False,
        ("endpoints", "timeout_seconds", "retries", "batch_size"),
    ),
    "jpeg-compressibility": Builtin("tailorpo_trainer.rewards.jpeg", "JpegCompressibility", False),
    "jpeg-incompressibility": Builtin("tailorpo_trainer.rewards.jpeg", "JpegIncompressibility", False),
}


def names() -> list[str]:
    """All reward names that a document may use, sorted. Imports no plug-in."""
    return sorted({*BUILTIN, *(plugin.name for plugin in _plugins())})


def find(name: str) -> Builtin | EntryPoint:
    """The reward `name`, not imported yet. Raises `ConfigurationError` if there is none, or more than one."""
    plugins = [plugin for plugin in _plugins() if plugin.name == name]
    if name in BUILTIN:
        if plugins:
            raise ConfigurationError(
                f"reward {name!r} is built in, and {_origin(plugins[0])} may not take its name: "
                "uninstall or rename that plug-in"
            )
        return BUILTIN[name]
    if len(plugins) > 1:
        raise ConfigurationError(
            f"reward {name!r} is defined twice: uninstall one of {' and '.join(map(_origin, plugins))}"
        )
    if plugins:
        return plugins[0]
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"there is no reward {name!r}{hint} (known: {', '.join(known)})")


def misspelt(name: str) -> str | None:
    """The reward that is most probably meant by a name which no reward has that is built in or installed here."""
    known = names()
    return None if name in known else similar(name, known)


def similar(name: str, known: Sequence[str]) -> str | None:
    """The known name that differs from `name` in a letter or two, in case or in `_` for `-`; None if none does."""
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=0.85)
    return near[0] if near else None


def _plugins() -> Iterator[EntryPoint]:
    # One distribution may be found twice (an editable install and its build folder), which is not a conflict.
    unique = {(plugin.name, plugin.value, _origin(plugin)): plugin for plugin in entry_points(group=GROUP)}
    yield from unique.values()


def _origin(plugin: EntryPoint) -> str:
    package = plugin.dist.name if plugin.dist is not None else "an unknown package"
    return f"{package} ({plugin.value})"
