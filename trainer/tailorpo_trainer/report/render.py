"""Render templates to one file with style and script inside; all other text is escaped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tailorpo_trainer import files
from tailorpo_trainer.report import number_format

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
    # Our own files are not escaped. Data of a run must never be passed as `Markup`.
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    return environment.get_template(template).render(style=style, script=script, **values)


def embed(values: Mapping[str, Any]) -> Markup:
    """JSON for a `<script type="application/json">`, escaped so that no text in it can end the element."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def save(text: str, to: Path) -> Path:
    """Write a page atomically. Raises as `files.replace`."""
    files.replace(to, text)
    return to
