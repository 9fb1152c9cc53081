"""Text for people at a terminal of any width: words stay whole, and so do the rows of a table."""

import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

LEAST = 20
"""A narrower terminal is taken for one that does not know its width."""


def width(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream writes to; None where it writes to none."""
    try:
        if not stream.isatty():
            return None
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
    return columns if columns >= LEAST else None


def wrap(text: str, columns: int | None) -> str:
    """Break lines between words. A word that is longer than a line stays whole, so that a path can be copied."""
    if columns is None:
        return text
    return "\n".join(
        textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False) if len(line) > columns else line
        for line in text.split("\n")
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None, *, gap: int = 2, numbers: bool = True
) -> list[str]:
    """The lines of a table; where they are longer than `columns`, each row is a block with one line for each cell.

    numbers: align all columns but the first at the right.
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(length) if numbers and column else cell.ljust(length)
            for column, (cell, length) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(cells).rstrip())
    if columns is None or max(map(len, lines)) <= columns:
        return lines
    blocks = []
    for first, *cells in rows:
        margin = " " * (len(first) - len(first.lstrip()) + 2)
        blocks += [f"{head[0]} {first}" if head[0] else first] if first.strip() else []
        blocks += [f"{margin}{name} {cell}".rstrip() for name, cell in zip(head[1:], cells, strict=True) if cell]
    return [part for line in blocks for part in _hanging(line, columns)]


def _hanging(line: str, columns: int) -> list[str]:
    """A line in parts that fit, the further ones indented as the first is."""
    margin = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, columns, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False) or [
        line
    ]
