"""Templates to one file: style and script inside, everything that is not ours escaped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.report import number_format
from tailorpo_trainer.results.run_folder import write_text

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """A page of `templates/`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "signed", "count", "plural", "share", "seconds", "flops"):
        environment.filters[name] = getattr(number_format, name)
    # Ours, and free of markup: not escaped. What comes from outside never takes this way.
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    return environment.get_template(template).render(style=style, script=script, **values)


def embed(values: Mapping[str, Any]) -> Markup:
    """JSON inside a `<script type="application/json">`: no text in it can end the element."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def save(text: str, to: Path) -> Path:
    """Write a page in one step. Raises `ConfigurationError` if that cannot be."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, text)
    except OSError as error:
        raise ConfigurationError(f"{to} cannot be written: {error.strerror}") from None
    return to
