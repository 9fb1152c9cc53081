"""Values as Grafana writes them in its units."""

import math
from collections.abc import Callable, Sequence

Scale = Sequence[tuple[float, str]]

SHORT: Scale = ((1e15, " Quadr"), (1e12, " Tri"), (1e9, " Bil"), (1e6, " Mil"), (1e3, " K"))
BYTES: Scale = ((2**40, " TiB"), (2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (0, " B"))
SECONDS: Scale = (
    (31_536_000, " years"),
    (604_800, " weeks"),
    (86_400, " days"),
    (3600, " hours"),
    (60, " mins"),
    (1, " s"),
    (1e-3, " ms"),
    (1e-6, " µs"),
)
RATES = {"ops": " ops/s", "reqps": " req/s", "cps": " c/s"}


def figure(value: float, decimals: float | None = None) -> str:
    """Three significant digits, or so many decimals."""
    if decimals is not None:
        return f"{value:,.{int(decimals)}f}"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _scaled(scale: Scale) -> Callable[[float, float | None], str]:
    def text(value: float, decimals: float | None) -> str:
        for size, name in scale:
            if abs(value) >= size:
                return f"{figure(value / (size or 1), decimals)}{name}"
        return figure(value, decimals)

    return text


def _seconds(value: float, decimals: float | None) -> str:
    return "0 s" if value == 0 else _scaled(SECONDS)(value, decimals)


FORMATS: dict[str, Callable[[float, float | None], str]] = {
    "none": figure,
    "string": figure,
    "short": _scaled(SHORT),
    "percentunit": lambda value, decimals: f"{figure(100 * value, decimals)}%",
    "bytes": _scaled(BYTES),
    "s": _seconds,
    "h": lambda value, decimals: _seconds(3600 * value, decimals),
    "sci": lambda value, _: f"{value:.2e}",
}
FORMATS |= {
    name: lambda value, decimals, suffix=suffix: f"{_scaled(SHORT)(value, decimals)}{suffix}"  # type: ignore[misc]
    for name, suffix in RATES.items()
}


def text(value: float, unit: str, decimals: float | None = None) -> str:
    """A value in a unit. Raises KeyError for a unit that no dashboard here uses."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return FORMATS[unit](value, decimals)
