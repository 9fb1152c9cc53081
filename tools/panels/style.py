"""Colours and measures of the pictures, after Grafana's two themes."""

from dataclasses import dataclass
from zlib import crc32

COLUMNS = 24
COLUMN_INCHES = 0.66
ROW_INCHES = 0.37
GAP = 0.12  # inches between panels
NAMED = {
    "green": "#56A64B",
    "orange": "#FF780A",
    "red": "#E02F44",
    "blue": "#3274D9",
    "yellow": "#F2CC0C",
    "gray": "#8E8E8E",
    "purple": "#A352CC",
}
PALETTE = (
    "#3274D9 #FF780A #56A64B #A352CC #E02F44 #F2CC0C #37A2C2 #C4162A #8F3BB8 #19730E #B877D9 #E0B400 #1F60C4 #96D98D"
).split()


@dataclass(frozen=True)
class Theme:
    """The colours of one theme."""

    name: str
    page: str
    panel: str
    border: str
    text: str
    faint: str

    def colour(self, name: str) -> str:
        """A colour of Grafana by its name."""
        return self.text if name == "text" else NAMED.get(name, name)


LIGHT = Theme("light", "#F4F5F5", "#FFFFFF", "#D9DCDF", "#24292E", "#8A9097")
DARK = Theme("dark", "#111217", "#181B1F", "#2C3037", "#D0D4DB", "#7B828C")
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}


def colours(names: list[str], mode: str) -> list[str]:
    """The colours of the series of a panel: by their names, or one after the other."""
    if mode == "palette-classic-by-name":
        return [by_name(name) for name in names]
    return [PALETTE[index % len(PALETTE)] for index, _ in enumerate(names)]


def by_name(name: str) -> str:
    """The same colour for the same name in every panel."""
    return PALETTE[crc32(name.encode()) % len(PALETTE)]
