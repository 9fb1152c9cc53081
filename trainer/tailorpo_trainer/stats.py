"""The statistics of the report: functions of plain numbers, without numpy, so that tests can compare them with numpy.

A missing or non-finite value is None everywhere, and is left out of every result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Value = float | None

ROW_COSTS = {
    "denoiser_forwards": "denoiser_forward",
    "denoiser_forwards_with_gradient": "denoiser_backward",
    "decodes": "decode",
    "scoring_decodes": "scoring_decode",
    "reward_queries": "scoring",
}
"""For each kind of work in a run's `totals`, the key of its FLOPs for each row in `cost.json`."""


def flops(totals: Mapping[str, Value], cost: Mapping[str, float]) -> float:
    """FLOPs of some work. cost: of one row of each kind; a kind whose cost is not known counts 0."""
    return sum((totals.get(kind) or 0.0) * cost.get(key, 0.0) for kind, key in ROW_COSTS.items())


@dataclass(frozen=True)
class Difference:
    """After minus before, with its 95 % interval.

    Attributes:
        paired: from pairs of pictures of the same noise and prompt; otherwise from two means and their standard errors.
        better: pictures of `count` whose value rose; None where there are no pairs.
    """

    mean: float
    low: float
    high: float
    count: int
    paired: bool
    better: int | None = None

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def paired(before: Sequence[Value], after: Sequence[Value]) -> Difference | None:
    """The mean of the differences picture by picture; None without pairs, or with fewer than two."""
    if len(before) != len(after):
        return None
    gains = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if len(gains) < 2:
        return None
    center, width = mean(gains), t_quantile(len(gains) - 1) * standard_error(gains)
    return Difference(center, center - width, center + width, len(gains), True, sum(gain > 0 for gain in gains))


def unpaired(before: Value, before_error: Value, after: Value, after_error: Value, count: int) -> Difference | None:
    """The difference of two means. Wider than the paired interval where pictures correlate."""
    if before is None or after is None or before_error is None or after_error is None:
        return None
    width = 1.959964 * math.hypot(before_error, after_error)
    return Difference(after - before, after - before - width, after - before + width, count, False)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean, from the sample's standard deviation; needs at least two values."""
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))


def with_interval(value: float, half: float, sign: str = "") -> str:
    """`12.34 ± 0.56`: two significant digits of the interval, and as many decimals of the value."""
    if not math.isfinite(half) or half == 0:
        return f"{value:{sign}.4g}"
    digits = min(9, max(0, 1 - math.floor(math.log10(half))))
    return f"{value:{sign}.{digits}f} ± {half:.{digits}f}"


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): valid at 0 and 1 too, and never beyond them."""
    z, share = 1.959963984540054, count / of
    center, half = share + z**2 / (2 * of), z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, (center - half) / (1 + z**2 / of)), min(1.0, (center + half) / (1 + z**2 / of))


@lru_cache(maxsize=256)
def t_quantile(freedom: int) -> float:
    """The t that 95 % of draws from Student's distribution are within (two-sided)."""
    if freedom > 30:  # Cornish-Fisher; exact to six digits here
        z = 1.959963984540054
        return (
            z
            + (z**3 + z) / (4 * freedom)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        )
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), as a finite sum for integer degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def histogram(*samples: Sequence[Value]) -> tuple[list[float], list[list[int]]]:
    """Edges of bins that all samples share, and each sample's counts; no edges if all samples are empty."""
    clean = [[value for value in sample if value is not None] for sample in samples]
    values = [value for sample in clean for value in sample]
    if not values:
        return [], []
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    bins = min(30, max(6, round(1.5 * math.sqrt(max(len(sample) for sample in clean)))))
    edges = [low + (high - low) * k / bins for k in range(bins + 1)]
    counts = [[0] * bins for _ in clean]
    for index, sample in enumerate(clean):
        for value in sample:
            counts[index][min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    return edges, counts


def bins(length: int, at_most: int) -> list[range]:
    """The indices below `length`, in at most `at_most` groups of neighbours of about the same size."""
    groups = min(length, at_most)
    return [range(k * length // groups, (k + 1) * length // groups) for k in range(groups)]


def bin_mean(values: Sequence[Value], group: range) -> Value:
    """The mean of the values of a group that are not missing."""
    present = [value for value in (values[index] for index in group) if value is not None]
    return mean(present) if present else None


def pick(length: int, at_most: int) -> list[int]:
    """At most `at_most` of `length` indices, spread evenly, the first and the last among them."""
    if length <= at_most:
        return list(range(length))
    if at_most == 1:
        return [length - 1]
    return sorted({round(k * (length - 1) / (at_most - 1)) for k in range(at_most)})


def moving_mean(values: Sequence[Value], width: int) -> list[Value]:
    """The mean over `width` (odd) neighbours around each value, fewer at both ends."""
    half = width // 2
    return [bin_mean(values, range(max(0, k - half), min(len(values), k + half + 1))) for k in range(len(values))]
