"""The figures on the page are those of the metrics, as numpy computes them."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorpo_trainer import report, stats
from tailorpo_trainer.report import charts, number_format, run_page
from tailorpo_trainer.report.svg_paths import Series

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
    means = [
        float(np.mean([line["gap_by_step"][step] for line in lines(output, "iteration")]))
        for step in ("0", "5", "10", "14", "19")
    ]
    assert all(mean in text for mean in number_format.column(means, 3))


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


@pytest.mark.parametrize(
    ("end", "whole", "texts"),
    [
        (12, True, ["0", "3", "6", "9", "12"]),
        (1, True, ["0", "1"]),
        (7, True, ["0", "2", "4", "6", "7"]),
        (60, True, ["0", "20", "40", "60"]),
        (192, True, ["0", "50", "100", "150", "192"]),
        (11_520, True, ["0", "2.5k", "5.0k", "7.5k", "11.5k"]),
        (53.27, False, ["0", "20", "40", "53.3"]),
        (3.41e12, False, ["0", "1T", "2T", "3.41T"]),
    ],
)
def test_an_x_axis_ends_with_a_label(end: float, whole: bool, texts: list[str]) -> None:
    ticks = charts.x_labels(end, whole)
    assert [text for _, text in ticks] == texts
    assert ticks[-1][0] == end


def test_labels_of_an_x_axis_keep_their_distance() -> None:
    for end in (*range(1, 400), 12_345, 5_000_001):
        places = [tick / end for tick, _ in charts.x_labels(end, whole=True)]
        assert places[0] == 0
        assert 2 <= len(places) <= 7
        assert all(right - left > 0.12 for left, right in itertools.pairwise(places)), end


def one_chart(*values: float, **more: Any) -> charts.DrawnChart:
    series = Series("loss", "training", values)
    drawn = charts.draw(
        charts.Chart("loss", "Loss", [series], **more), {"training": {"iterations": [*range(1, len(values) + 1)]}}
    )
    assert drawn is not None
    return drawn


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ((0.6931472420692444,), {"level": math.log(2)}),  # as after the first iteration
        ((0.5, 0.5 + 1e-12), {}),
        ((-4.8e-8, 0.0, -1.8e-7), {"scale": 1.0}),  # DDPO's loss before a second update
    ],
)
def test_rounding_noise_is_drawn_flat(values: tuple[float, ...], more: dict[str, Any]) -> None:
    drawn = one_chart(*values, **more)
    top, bottom = drawn.data["top"], drawn.data["bottom"]
    assert max(values) - min(values) < 0.05 * (top - bottom)
    assert all(len(text) <= 9 for _, text in drawn.ticks)


def test_a_small_change_that_is_real_is_drawn_large() -> None:
    drawn = one_chart(0.69315, 0.69303, level=math.log(2), scale=1.0)
    assert 0.7 * (drawn.data["top"] - drawn.data["bottom"]) < 0.69315 - 0.69303


def test_labels_of_all_charts_fit_beside_their_plots(a_run: Make, page: Read) -> None:
    """Pixels that the longest label of a y axis needs in a wide typeface, DejaVu Sans: 0.636 em a digit, of 12 px."""
    found = page(report.write(a_run()))
    (width,) = {int(text) for text in re.findall(r"--labels:(\d+)px", found.html)}
    axes = re.findall(r'<div class="y" aria-hidden="true">(.*?)</div>', found.html)
    longest = max(len(text) for axis in axes for text in re.findall(r">([^<>]+)</span>", axis))
    assert longest * 0.636 * 12 <= width


def test_labels_that_are_long_get_more_room() -> None:
    short, long = one_chart(1.0, 2.0), one_chart(0.693144, 0.693156)
    assert charts.label_width([short]) == 42
    assert charts.label_width([short, long]) >= 8 * 0.636 * 12


def test_charts_leave_no_hole_in_a_row() -> None:
    for full, wide, small in itertools.product(range(2), range(3), range(9)):
        some = [one_chart(1.0, 2.0, full=True)] * full
        some += [one_chart(1.0, 2.0, wide=True)] * wide + [one_chart(1.0, 2.0)] * small
        laid = charts.lay_out(some)
        for spans in ([chart.columns for chart in laid], [chart.narrow_columns for chart in laid]):
            row = 0
            for span in spans:
                row = (row + span) % 6 if row + span <= 6 else pytest.fail(f"a hole before a chart: {spans}")
            assert row == 0, spans


@pytest.mark.parametrize("choices", [(6, 5, 4), (4, 3), (4, 3, 2)])
def test_a_grid_of_cards_has_no_orphan(choices: tuple[int, ...]) -> None:
    for count in range(1, 20):
        columns, last = charts.columns(count, choices)
        assert (count - 1 + last) % columns == 0


def test_figures_of_a_column_have_the_same_decimals() -> None:
    assert number_format.column([74.5, 73.6512, None, 9.871]) == ["74.50", "73.65", "–", "9.87"]
    assert number_format.column([103.6, 98.44]) == ["103.6", "98.4"]
    assert number_format.column([1.2e-5, 3e-4]) == ["1.2×10⁻⁵", "3×10⁻⁴"]


def test_the_units_of_rewards_are_those_of_their_classes() -> None:
    from tailorpo_trainer.rewards.clip_score import ClipScore
    from tailorpo_trainer.rewards.colourfulness import Colourfulness
    from tailorpo_trainer.rewards.jpeg import JpegCompressibility, JpegIncompressibility

    for kind in (Colourfulness, ClipScore, JpegCompressibility, JpegIncompressibility):
        assert run_page.UNITS[kind.name] == kind.unit.replace(" x ", " × ").replace("-kB", "−kB")
    assert len(run_page.UNITS) == 4


def test_a_rounded_zero_has_no_sign() -> None:
    assert number_format.signed(-0.001, decimals=1) == "0.0"
    assert number_format.signed(0.0001, decimals=2) == "0.00"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.001, 0.0013), (1e9, 3e12), (5, 5.0000001)])
def test_ticks_are_inside_and_few(low: float, high: float) -> None:
    ticks = [tick for tick, _ in charts.ticks_of(low, high, 5)]
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 * abs(high) <= tick <= high * (1 + 1e-9) for tick in ticks)
