"""The page holds together: one file, every section, nothing unescaped, nothing loaded."""

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
