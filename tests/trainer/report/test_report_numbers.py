"""The figures on the page are those of the metrics, as numpy computes them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorpo_trainer import report, stats
from tailorpo_trainer.report import charts, number_format

Make = Callable[..., Path]
Read = Callable[[Path], Any]

T_TABLE = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    4: 2.7764,
    5: 2.5706,
    10: 2.2281,
    30: 2.0423,
    31: 2.0395,
    63: 1.9983,
    1000: 1.9623,
}


@pytest.mark.parametrize(("freedom", "expected"), T_TABLE.items())
def test_t_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert stats.t_quantile(freedom) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(12.3456, 0.561, "12.35 ± 0.56"), (1234.5, 56.0, "1234 ± 56"), (-0.00123, 2e-5, "-0.001230 ± 0.000020")],
)
def test_a_value_has_the_digits_of_its_interval(value: float, half: float, text: str) -> None:
    assert stats.with_interval(value, half) == text
    assert stats.with_interval(1.0, float("nan"), "+") == "+1"


def lines(output: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_the_paired_difference_and_its_interval(a_run: Make, page: Read) -> None:
    output = a_run(images=32)
    found = page(report.write(output))
    first, *_, last = lines(output, "evaluation")
    gains = np.array(last["scores"]) - np.array(first["scores"])
    width = 2.0395134 * gains.std(ddof=1) / math.sqrt(len(gains))
    expected = [gains.mean(), gains.mean() - width, gains.mean() + width]
    assert found.values["held-out reward"] == pytest.approx(expected, rel=1e-6)
    assert f"better in {(gains > 0).sum()} of 32 pictures" in found.text
    assert (
        f"rose from {np.mean(first['scores']):.2f} to {np.mean(last['scores']):.2f}: +{gains.mean():.2f}" in found.text
    )


def test_a_watched_reward_is_compared_by_its_means(a_run: Make, page: Read) -> None:
    output = a_run()
    first, *_, last = lines(output, "evaluation")
    gain = last["rewards"]["clip-score"] - first["rewards"]["clip-score"]
    width = 1.959964 * math.hypot(0.6, 0.6)
    values = page(report.write(output)).values["clip-score"]
    assert values == pytest.approx([gain, gain - width, gain + width])


def test_seconds_by_phase_and_counts_of_work(a_run: Make, page: Read) -> None:
    output = a_run()
    found = page(report.write(output)).values["cost"]
    iterations, evaluations = lines(output, "iteration"), lines(output, "evaluation")
    phases = ("rollout", "decode", "score", "update", "checkpoint")
    expected = [sum(line["phase_seconds"][phase] for line in iterations) for phase in phases]
    expected.append(sum(line["seconds"] for line in evaluations))
    assert found[:6] == pytest.approx(expected)
    totals = iterations[-1]["totals"]
    keys = ("images", "reward_queries", "denoiser_forwards", "denoiser_forwards_with_gradient", "decodes")
    assert found[6:] == pytest.approx([totals[key] for key in keys])


def test_curves_hold_the_metrics(a_run: Make, page: Read) -> None:
    output = a_run(images=32)
    data = page(report.write(output)).data
    evaluations, iterations = lines(output, "evaluation"), lines(output, "iteration")
    series = data["charts"]["reward"]["series"][0]
    assert series["y"] == pytest.approx([line["reward"] for line in evaluations], rel=1e-5)
    low = [line["reward"] - 2.0395134 * line["reward_standard_error"] for line in evaluations]
    assert series["low"] == pytest.approx(low, rel=1e-5)
    assert data["grids"]["evaluation"]["images"] == [line["totals"].get("images", 0) for line in evaluations]
    raw = data["charts"]["training-gap"]["series"][0]
    assert raw["y"] == pytest.approx([line["gap"] for line in iterations], rel=1e-5)


def test_gaps_by_step_are_means(a_run: Make, page: Read) -> None:
    output = a_run()
    text = page(report.write(output)).text
    for step in ("0", "5", "10", "14", "19"):
        mean = np.mean([line["gap_by_step"][step] for line in lines(output, "iteration")])
        assert number_format.number(float(mean), 3) in text


def test_histogram_shares_bins_and_counts_everything() -> None:
    random = np.random.default_rng(0)
    before, after = random.normal(0, 1, 50).tolist(), random.normal(2, 1, 50).tolist()
    edges, counts = stats.histogram([*before, None], after)
    assert counts[0] == np.histogram(before, edges)[0].tolist()
    assert counts[1] == np.histogram(after, edges)[0].tolist()
    assert stats.histogram([3.0, 3.0], [3.0])[1][0].count(2) == 1
    assert stats.histogram([None], []) == ([], [])


def test_long_rows_are_thinned_by_averaging() -> None:
    row = np.random.default_rng(0).normal(0, 1, 10_000)
    downsampled = charts.downsample({"x": list(range(10_000)), "y": row.tolist()})
    assert len(downsampled["y"]) == 500
    assert downsampled["y"] == pytest.approx(row.reshape(500, 20).mean(1).tolist())
    assert downsampled["x"][0] == pytest.approx(9.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (34.1234, "34.12"), (-0.5, "−0.5000"), (12345.6, "12346"), (1.2e-5, "1.2×10⁻⁵"), (None, "–"),
     (math.nan, "–"), (2.5e7, "2.5×10⁷"), (math.inf, "–")],
)  # fmt: skip
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number_format.number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.69312, 0.69318, ["0.69312", "0.69314", "0.69316", "0.69318"]),
        (0, 4e-5, ["0", "1×10⁻⁵", "2×10⁻⁵", "3×10⁻⁵", "4×10⁻⁵"]),
        (0, 10_000, ["0", "2.5k", "5.0k", "7.5k", "10.0k"]),
        (0, 7.5, ["0", "2", "4", "6"]),
        (-1.5, 1.5, ["−1", "0", "1"]),
        (0, 3e6, ["0", "1M", "2M", "3M"]),
    ],
)
def test_axis_labels_are_short_and_differ(low: float, high: float, labels: list[str]) -> None:
    assert [text for _, text in charts.labels(low, high, 4)] == labels


def test_counts_have_no_ticks_between_whole_numbers() -> None:
    assert [tick for tick, _ in charts.ticks_of(0, 3, 5, whole=True)] == [0, 1, 2, 3]
    assert [tick for tick, _ in charts.ticks_of(0, 12, 5, whole=True)] == [0, 5, 10]


def test_a_rounded_zero_has_no_sign() -> None:
    assert number_format.signed(-0.001, decimals=1) == "0.0"
    assert number_format.signed(0.0001, decimals=2) == "0.00"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.001, 0.0013), (1e9, 3e12), (5, 5.0000001)])
def test_ticks_are_inside_and_few(low: float, high: float) -> None:
    ticks = [tick for tick, _ in charts.ticks_of(low, high, 5)]
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 * abs(high) <= tick <= high * (1 + 1e-9) for tick in ticks)
