"""The page holds together: one file, every section, nothing unescaped, nothing loaded."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailorpo_trainer import report
from tailorpo_trainer.errors import ConfigurationError, TailorPOError

Make = Callable[..., Path]
Read = Callable[[Path], Any]
SECTIONS = ["headline", "pictures", "curves", "gaps", "histogram", "cost", "alarms", "reproduce"]


def test_writes_report_html_with_every_section(a_run: Make, page: Read) -> None:
    output = a_run(flops=True, alarm=True)
    written = report.write(output)
    assert written == output / "report.html"
    found = page(written)
    assert [name for name in found.ids if name in SECTIONS] == SECTIONS
    assert len(found.ids) == len(set(found.ids)), "an id twice"


def test_loads_nothing(a_run: Make, page: Read) -> None:
    for path in (report.write(a_run()), report.compare([a_run("one"), a_run("two", seed=1)], a_run("one") / "c.html")):
        found = page(path)
        assert all(link.startswith(("#", "data:image/")) for link in found.links)
        assert not re.findall(r"https?://", found.html)
        assert "url(" not in found.html
        assert "@import" not in found.html
        assert "default-src 'none'" in found.html


def test_names_what_was_run_and_how_to_run_it_again(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(name="my-run", method="spo"))).text
    assert "spo on tiny-animals" in text
    assert "my-run" in text
    assert "maximises colourfulness · complete, 60 iterations" in text
    assert "tailorpo run job.yaml --output DIR" in text
    assert "promptsPerIteration : 8" in text
    assert "AMD EPYC" in text
    assert "torch 2.9.0" in text


def test_every_picture_has_a_text_and_every_pair_its_scores(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run()))
    alts = [alt for _, alt in found.images]
    assert alts[:2] == ["before: a wolf", "after: a wolf"]
    assert len(alts) == 16
    assert all(source.startswith("data:image/webp;base64,") for source, _ in found.images)
    frames = found.data["frames"]
    assert frames["iterations"] == [0, 10, 20, 30, 40, 50, 60]
    assert frames["uris"][0] is None
    assert [len(row) for row in frames["uris"][1:-1]] == [8] * 5


HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quoted" \'too\''


def test_what_comes_from_outside_is_escaped(a_run: Make, page: Read) -> None:
    output = a_run(held_out=(HOSTILE, "яблоко 🍎 りんご"), prompts=(HOSTILE,), watched=("</script><b>bold",))
    (output / "progress.json").write_text('{"phase": "Failed", "message": "<i>at prompt</i>", "attempt": 1}')
    for path in (report.write(output), report.compare([output, a_run("two")], output / "c.html")):
        found = page(path)
        assert "<script>alert" not in found.html
        assert "onerror" not in re.sub(r"&lt;img src=x onerror", "", found.html).replace("\\u003cimg src=x onerror", "")
        assert "<b>bold" not in found.html
        assert "<i>at prompt" not in found.html
        assert HOSTILE in found.text
        assert "яблоко 🍎 りんご" in found.text
        assert found.data["charts"]


def test_a_password_in_an_address_stays_out(a_run: Make, page: Read) -> None:
    secret = [{"name": "http", "endpoints": ["https://user:hunter2@scores.example/v1"]}]
    assert "hunter2" not in page(report.write(a_run(spec={"rewards": secret}))).html


def test_alarms_say_what_to_do(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(alarm=True))).text
    assert "over-optimisation iteration 30 The reward rises" in text
    assert "What to do Look at the pictures" in text
    assert "No alarms" in page(report.write(a_run("quiet"))).text


def chart(found: Any, key: str) -> str:
    """The HTML of one chart."""
    return str(re.findall(rf'<figure class="chart[^>]*data-chart="{key}">.*?</figure>', found.html, re.DOTALL)[0])


def test_a_reference_line_is_named_in_the_legend_and_not_on_the_curve(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run()))
    for key, name in (("training-loss", "log 2: no preference yet"), ("training-implicit_accuracy", "chance: 0.5")):
        text = chart(found, key)
        assert f'<p class="legend"><span><i class="level"></i>{name}</span></p>' in text
        area = text.partition('<div class="area">')[2]
        assert name not in area
        assert re.search(r'<b class="level" style="[^"]*"></b>', area)


def test_where_pairs_have_no_winner_the_loss_is_not_compared_with_log_2(a_run: Make, page: Read) -> None:
    output = a_run(method="spo")
    path = output / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        line |= {"tied": 0.025, "loss": 0.6758} if line["kind"] == "iteration" else {}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = chart(page(report.write(output)), "training-loss")
    assert "log 2" not in text
    assert "pairs without a winner add 0" in text


def test_without_pairs_there_is_a_log_ratio_and_no_logit(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run(method="ddpo")))
    assert "mean of |log ratio|" in chart(found, "training-logit")
    assert "logit" not in found.text
    (head,) = (row for row in found.rows if row[:2] == ["iteration", "images"])
    assert head == ["iteration", "images", "reward", "loss", "gradient norm", "log ratio", "|log ratio|"]


def test_diversities_have_intervals_and_tiles(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run()))
    for key, name, error in (("diversity", "diversity", 0.01), ("feature-diversity", "feature diversity", 0.03)):
        series = found.data["charts"][key]["series"][0]
        assert 'class="band' in chart(found, key)
        assert [y - low for y, low in zip(series["y"], series["low"], strict=True)] == pytest.approx(
            [1.959964 * error] * len(series["y"]), rel=1e-4
        )
        change = series["y"][-1] - series["y"][0]
        width = 1.959964 * error * 2**0.5
        assert found.values[name] == pytest.approx([change, change - width, change + width], abs=1e-6)


def test_a_diversity_that_falls_far_is_told_with_its_uncertainty(a_run: Make, page: Read) -> None:
    output = a_run()
    path = output / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "evaluation"][-1]
    for error, words in ((0.05, " (which may be chance: its interval includes 0)"), (0.001, "")):
        last |= {"feature_diversity": 0.235, "feature_diversity_standard_error": error}
        lines[0] |= {"feature_diversity_standard_error": error}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        text = page(report.write(output)).text
        assert f"At the same time feature diversity fell from 0.320 to 0.235{words}: look at the pictures" in text


def test_the_histogram_s_axes_have_names(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run()))
    (plot,) = re.findall(r'<div class="plot histogram".*?</section>', found.html, re.DOTALL)
    assert re.findall(r"<em>(.*?)</em>", plot) == ["pictures", "colourfulness, in 8-bit levels"]
    rewards = [{"name": "colourfulness"}, {"name": "clip-score", "weight": 0.25}]
    (plot,) = re.findall(
        r'<div class="plot histogram".*?</section>',
        page(report.write(a_run("two", spec={"rewards": rewards}))).html,
        re.DOTALL,
    )
    assert "<em>reward: 1 × colourfulness + 0.25 × clip-score</em>" in plot


def test_scores_beside_each_other_have_the_same_decimals(a_run: Make, page: Read) -> None:
    found = page(report.write(a_run()))
    captions = re.findall(r'<span class="scores">(.*?)</span>', found.html)
    figures = re.findall(r"\d+(?:\.\d+)?", " ".join(captions))
    assert {len(figure.partition(".")[2]) for figure in figures} == {found.data["frames"]["decimals"]}


def test_words_of_the_costs_stand_alone(a_run: Make, page: Read) -> None:
    text = page(report.write(a_run(flops=True))).text
    assert "policy denoiser forwards with a gradient" in text
    assert "of these forwards, with a gradient" in text


def test_what_is_wider_than_a_small_page_says_that_it_scrolls() -> None:
    folder = Path(report.__file__).parent / "templates"
    assert "scroll-hint" in (folder / "page.js").read_text()
    style = (folder / "style.css").read_text()
    assert "background-attachment: local, local, scroll, scroll" in style
    narrow = style.partition("@media (max-width: 720px)")[2].partition("@media")[0]
    assert re.search(r"\.top nav \{[^}]*flex-wrap: wrap", narrow)


def test_flops_only_where_the_cost_of_a_row_is_known(a_run: Make, page: Read) -> None:
    assert "FLOP" not in page(report.write(a_run())).text
    found = page(report.write(a_run("known", flops=True)))
    assert "FLOPs" in found.text
    assert set(found.data["ends"]) == {"iterations", "images", "queries", "forwards", "flops", "seconds"}
    row = 60 * 80
    parts = [60 * 520 * 2e8, row * 2e8, row * 4e8, row * 1e8, row * 5e7]
    assert found.values["cost"][6:11] == pytest.approx(parts)
    assert found.data["ends"]["flops"] == pytest.approx(sum(parts))


def test_the_script_is_valid() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    script = Path(report.__file__).parent / "templates" / "page.js"
    subprocess.run([node, "--check", str(script)], check=True)


def test_no_template_part_could_end_its_element() -> None:
    folder = Path(report.__file__).parent / "templates"
    assert "</script" not in (folder / "page.js").read_text()
    assert "</style" not in (folder / "style.css").read_text()


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    for call in (lambda: report.write(tmp_path), lambda: report.compare([tmp_path, tmp_path], tmp_path / "c.html")):
        with pytest.raises(TailorPOError, match="is no output folder of a run") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_sentence(a_run: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"tmp.*file.*: is not usable as a file or folder"):
        report.compare([a_run("one"), a_run("two")], tmp_path / "file" / "compare.html")


def test_needs_no_torch() -> None:
    code = "import sys, tailorpo_trainer.report; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
