"""Numbers as text for readers."""

import math
from collections.abc import Iterable, Sequence

DASH = "–"
NARROW_SPACE = "\u202f"  # narrow no-break space
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 4, decimals: int | None = None) -> str:
    """A measured value: `digits` significant ones, or exactly `decimals` after the point."""
    if value is None or not math.isfinite(value):
        return DASH
    if decimals is not None:
        return _sign(f"{value:.{decimals}f}")
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
        return _sign(f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}") + (
            f"×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
        )
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return _sign(text)


def signed(value: float | None, digits: int = 3, decimals: int | None = None) -> str:
    """The same, with a plus sign if it is positive."""
    text = number(value, digits, decimals)
    above = value is not None and value > 0 and text.strip("0.") and text != DASH
    return f"+{text}" if above else text


def decimals_for(half_width: float | None, fallback: float | None = None) -> int:
    """Decimals that give an interval's half width two significant digits."""
    width = half_width if half_width else abs(fallback or 0) / 1000
    if not width or not math.isfinite(width):
        return 3
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def common_decimals(values: Iterable[float | None], digits: int = 4) -> int | None:
    """Decimals that give the largest of the values so many significant digits; None if they need an exponent.

    Figures that are read below or beside each other have the same number of decimals.
    """
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    if not 1e-3 <= largest < 1e6:
        return None
    return max(0, digits - 1 - math.floor(math.log10(largest)))


def column(values: Sequence[float | None], digits: int = 4) -> list[str]:
    """The values of a column of a table, all with the same decimals."""
    decimals = common_decimals(values, digits)
    return [number(value, digits, decimals) for value in values]


def count(value: float | None) -> str:
    """A whole number with separated thousands."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{round(value):,}".replace(",", NARROW_SPACE)


def plural(value: int, noun: str) -> str:
    """`1 alarm`, `2 alarms`."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def share(value: float | None) -> str:
    """A fraction as per cent."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.0f}{NARROW_SPACE}%" if value >= 0.0995 or value == 0 else f"{100 * value:.1f}{NARROW_SPACE}%"


def seconds(value: float | None) -> str:
    """A duration."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 1:
        return f"{value:.2g}{NARROW_SPACE}s"
    if value < 120:
        return f"{value:.1f}{NARROW_SPACE}s" if value < 10 else f"{value:.0f}{NARROW_SPACE}s"
    if value < 7200:
        return f"{int(value // 60)}{NARROW_SPACE}min {int(value % 60):02d}{NARROW_SPACE}s"
    return f"{int(value // 3600)}{NARROW_SPACE}h {int(value % 3600 // 60):02d}{NARROW_SPACE}min"


def flops(value: float | None) -> str:
    """Floating-point operations with an SI prefix."""
    if value is None or not math.isfinite(value):
        return DASH
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g}{NARROW_SPACE}{prefix}FLOP"
    return f"{value:.3g}{NARROW_SPACE}FLOP"


def tick(value: float, step: float, largest: float) -> str:
    """An axis label, as short as the step allows. All labels of an axis, up to `largest`, have the same unit."""
    if abs(value) < step / 1e6:
        return "0"
    top = max(largest, step)
    if top < 1e-4 or top >= 1e16:
        power = math.floor(math.log10(top))
        unit = 10.0**power
        return _sign(f"{value / unit:.{_places(step / unit)}f}") + f"×10{str(power).translate(_SUPERSCRIPT)}"
    for factor, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if top >= factor:
            unit = 1e3 if suffix == "k" else factor
            return _sign(f"{value / unit:.{_places(step / unit)}f}{suffix}")
    return _sign(f"{value:.{_places(step)}f}")


def _places(step: float) -> int:
    places = max(0, -math.floor(math.log10(step)))
    return places + (1 if abs(step * 10**places - round(step * 10**places)) > 1e-6 else 0)


def _sign(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.") else "−" + text[1:]
    return text
