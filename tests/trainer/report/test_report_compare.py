"""Runs side by side: only what can be compared is."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorpo_trainer import report
from tailorpo_trainer.errors import ConfigurationError

Make = Callable[..., Path]
Read = Callable[[Path], Any]


def scores(output: Path, iteration: int) -> np.ndarray:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in lines if line["kind"] == "evaluation" and line["iteration"] == iteration)
    return np.array(found["scores"])


def test_runs_on_the_same_pictures_are_paired(a_run: Make, page: Read, tmp_path: Path) -> None:
    one, two = a_run("one", name="one"), a_run("two", name="two", method="spo", seed=3, gain=4.0)
    found = page(report.compare([one, two], tmp_path / "compare.html"))
    assert "differences between runs are paired by picture" in found.text
    gains = scores(two, 60) - scores(one, 60)
    width = 2.0395134 * gains.std(ddof=1) / math.sqrt(len(gains))
    assert found.values["two"][3:] == pytest.approx([gains.mean(), gains.mean() - width, gains.mean() + width])
    assert "not paired" not in found.text
    assert "spec.method.name" in found.text
    assert "The same noise in a row" in found.text


def test_equal_budgets_take_what_each_run_had_by_then(a_run: Make, page: Read, tmp_path: Path) -> None:
    long, rounded = a_run("long", name="long", iterations=60), a_run("short", name="short", iterations=30)
    text = page(report.compare([long, rounded], tmp_path / "compare.html")).text
    assert "240 training images" in text
    at = scores(long, 30).mean()
    assert f"{at:.2f} iteration 30" in text


def test_curves_share_axes(a_run: Make, page: Read, tmp_path: Path) -> None:
    runs = [a_run(name, name=name, flops=True) for name in ("one", "two", "three")]
    data = page(report.compare(runs, tmp_path / "compare.html")).data
    assert list(data["ends"]) == ["iterations", "images", "queries", "forwards", "flops", "seconds"]
    assert [series["name"] for series in data["charts"]["reward"]["series"]] == ["one", "two", "three"]
    (runs[1] / "cost.json").unlink()
    assert "flops" not in page(report.compare(runs, tmp_path / "compare.html")).data["ends"]


def test_other_rewards_are_not_compared(a_run: Make, page: Read, tmp_path: Path) -> None:
    two = a_run("two", name="two", spec={"rewards": [{"name": "jpeg-compressibility"}]})
    found = page(report.compare([a_run("one", name="one"), two], tmp_path / "compare.html"))
    assert "The rewards differ" in found.text
    assert len(found.values["two"]) == 3, "a gain over its own base, and no difference to the other"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"training": {"iterations": 60, "seed": 1}}, "seed"),
        ({"sampling": {"steps": 10}}, "sampling"),
        ({"evaluation": {"everyIterations": 10, "images": 16}}, "number of pictures"),
    ],
)
def test_other_evaluations_are_not_paired(
    a_run: Make, page: Read, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    two = a_run("two", name="two", spec=change)
    text = page(report.compare([a_run("one", name="one"), two], tmp_path / "compare.html")).text
    assert f"The evaluations differ in {word}" in text
    assert "not paired" in text


def test_other_held_out_prompts_and_machines(a_run: Make, page: Read, tmp_path: Path) -> None:
    two = a_run("two", name="two", held_out=("a rat",))
    (two / "environment.json").write_text('{"processor": "another", "threads": 8}')
    text = page(report.compare([a_run("one", name="one", done=20), two], tmp_path / "compare.html")).text
    assert "The evaluations differ in prompts" in text
    assert "do not compare their seconds" in text
    assert "Not finished: one." in text


def test_of_three_runs_only_those_with_another_reward_have_no_difference(
    a_run: Make, page: Read, tmp_path: Path
) -> None:
    other = a_run("three", name="three", spec={"rewards": [{"name": "jpeg-compressibility"}]})
    runs = [a_run("one", name="one"), a_run("two", name="two", seed=3), other]
    found = page(report.compare(runs, tmp_path / "compare.html"))
    assert "The rewards differ: one and two against three." in found.text
    assert "no difference between runs with different rewards is given" in found.text
    assert [len(found.values[name]) for name in ("one", "two", "three")] == [3, 6, 3]
    assert found.text.count("another reward") == 1


def titles(found: Any) -> list[tuple[str, list[str]]]:
    """The title of each row of pictures, and their captions."""
    rows = re.findall(r'<div class="row">(.*?)</div>', found.html, re.DOTALL)
    strip = lambda text: " ".join(re.sub(r"<[^>]+>", " ", text).split())  # noqa: E731
    return [
        (
            strip("".join(re.findall(r'<p class="prompt">(.*?)</p>', row))),
            [strip(caption) for caption in re.findall(r"<figcaption>(.*?)</figcaption>", row)],
        )
        for row in rows
    ]


def test_a_row_of_pictures_has_the_title_of_all_or_of_none(a_run: Make, page: Read, tmp_path: Path) -> None:
    one, two = a_run("one", name="one"), a_run("two", name="two", held_out=("a rat", "a whale"))
    found = page(report.compare([one, two], tmp_path / "compare.html"))
    rows = titles(found)
    assert rows[0][0] == ""  # a wolf, and a rat
    assert [re.sub(r" [\d.]+", "", caption) for caption in rows[0][1]] == [
        "one, before a wolf",
        "one a wolf",
        "two a rat",
    ]
    assert rows[1][0] == "a whale"
    assert all("a whale" not in caption for caption in rows[1][1])
    alts = [alt for _, alt in found.images]
    assert alts[:3] == ["one, before: a wolf", "one: a wolf", "two: a rat"]
    same = titles(page(report.compare([one, a_run("three", name="three")], tmp_path / "same.html")))
    assert same[0][0] == "a wolf"


def test_figures_below_each_other_have_the_same_decimals(a_run: Make, page: Read, tmp_path: Path) -> None:
    runs = [a_run("one", name="one", images=200), a_run("two", name="two", images=4, seed=3)]
    found = page(report.compare(runs, tmp_path / "compare.html"))
    cells = re.findall(r'<tr data-run="[^"]*">.*?</th>\s*<td>([\d.]+)</td>', found.html, re.DOTALL)
    assert len(cells) == 2
    assert len({len(cell.partition(".")[2]) for cell in cells}) == 1


def test_what_is_missing_is_told_in_words(a_run: Make, page: Read, tmp_path: Path) -> None:
    runs = [
        a_run("one", name="one"),
        a_run("no", name="no", every=0, watched=()),
        a_run("early", name="early", done=4, watched=()),
    ]
    found = page(report.compare(runs, tmp_path / "compare.html"))
    assert "–" not in re.sub(r"<figure.*?</figure>", "", found.html.partition("<main")[2].partition("</main>")[0])
    for words in ("itself", "no evaluation", "one evaluation", "not measured", "not set"):
        assert words in found.text, words


def test_how_a_reward_is_asked_is_no_other_reward(a_run: Make, page: Read, tmp_path: Path) -> None:
    runs = [
        a_run(
            name, name=name, spec={"rewards": [{"name": "http", "endpoints": ["http://scorer/v1"], "retries": retries}]}
        )
        for name, retries in (("one", 2), ("two", 3))
    ]
    text = page(report.compare(runs, tmp_path / "compare.html")).text
    assert "The rewards differ" not in text
    assert "spec.rewards[0].retries" in text


def test_runs_of_one_name_are_told_apart(a_run: Make, page: Read, tmp_path: Path) -> None:
    one = a_run("one")
    text = page(report.compare([one, a_run("two"), one], tmp_path / "compare.html")).text
    assert "vivid-animals (one)" in text
    assert "vivid-animals (two)" in text
    assert "vivid-animals (one) #3" in text


def test_nine_runs_and_one_without_evaluations(a_run: Make, page: Read, tmp_path: Path) -> None:
    runs = [a_run(f"run{k}", name=f"run{k}", seed=k, pictures=k == 0) for k in range(8)] + [
        a_run("no", name="no", every=0)
    ]
    found = page(report.compare(runs, tmp_path / "compare.html"))
    assert len(found.data["charts"]["reward"]["series"]) == 8
    assert "c0 dashed" in found.html


def test_into_a_folder(a_run: Make, tmp_path: Path) -> None:
    assert report.compare([a_run("one"), a_run("two")], tmp_path) == tmp_path / "compare.html"


def test_one_run_is_no_comparison(a_run: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least two"):
        report.compare([a_run()], tmp_path / "compare.html")
