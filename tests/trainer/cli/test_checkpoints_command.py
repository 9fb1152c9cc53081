"""`tailorpo checkpoints`: what is there, whether it is sound, and the adapter as diffusers loads it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import cli, models
from tailorpo_trainer.checkpoint import latest, open_store
from tailorpo_trainer.document import parse
from tailorpo_trainer.evaluation import trained
from tailorpo_trainer.training import loop

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def done(document: Make, tmp_path: Path) -> Path:
    """A run of four iterations with a moving average, whose first three checkpoints are kept."""
    values = document(
        lora={"rank": 2, "alpha": 6},
        optimizer={"learningRate": 0.05, "emaDecay": 0.5},
        training={"iterations": 4, "promptsPerIteration": 2},
        evaluation={"everyIterations": 2, "images": 2},
    )
    loop.run(parse(values), tmp_path / "done", display="quiet")
    return tmp_path / "done"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["checkpoints", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_all_of_it(
    done: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, s3_bucket: str, s3_server: Any
) -> None:
    """In one test, because what it looks at costs a run."""
    s3_server.upload(done, s3_bucket, "copy")
    uris = (str(done), f"file://{done}", f"s3://{s3_bucket}/copy")
    capsys.readouterr()
    listed = []
    for uri in uris:
        status, out, _ = run(capsys, "ls", uri, "--json")
        assert status == 0
        listed.append([{**row, "uri": ""} for row in json.loads(out)])
    assert listed[0] == listed[1] == listed[2]
    rows = listed[0]
    assert [(row["attempt"], row["step"], row["complete"], row["resume"]) for row in rows] == [
        (1, step, True, step == 4) for step in (1, 2, 3, 4)
    ]
    assert [row["evaluation"] is None for row in rows] == [True, False, True, False]
    newest = latest(open_store(done))
    assert newest is not None
    assert rows[-1]["size"] == newest.manifest.size
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["evaluation"] == next(
        line["reward"] for line in lines if (line["kind"], line["iteration"]) == ("evaluation", 4)
    )
    out = run(capsys, "ls", done)[1]
    assert out.splitlines()[-2].split()[:3] == ["*", "1", "4"]

    exported(uris[2], tiny_pipeline, done, tmp_path / "lora", capsys)

    for uri in uris:
        status, out, err = run(capsys, "verify", uri)
        assert (status, out.count(": ok"), err) == (0, 4, "4 checkpoints, all as their manifests say\n")

    step = done / "attempt-0001" / "step-00000004"
    (step / "adapter.safetensors").write_bytes(b"torn")
    (step / "state.json").unlink()
    data = bytearray((done / "attempt-0001" / "step-00000002" / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (done / "attempt-0001" / "step-00000002" / "optimizer.safetensors").write_bytes(data)
    (done / "attempt-0001" / "step-00000003" / "manifest.json").unlink()
    rows = json.loads(run(capsys, "ls", done, "--json")[1])
    assert [(row["step"], row["complete"], row["resume"]) for row in rows] == [
        (1, True, False),
        (2, True, True),  # the byte that is wrong is seen by verify alone
        (3, False, False),
        (4, False, False),
    ]
    assert "has no manifest" in rows[2]["problem"]
    status, out, err = run(capsys, "verify", done)
    assert status == 65
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["ok", "damaged", "damaged"]
    named = ("step-00000002/optimizer", "step-00000004/adapter", "step-00000004/state")
    assert all(err.count(name) == 1 for name in named)
    assert "Traceback" not in err
    status, _, err = run(capsys, "export", done, "--to", tmp_path / "damaged", "--step", "4")
    assert status == 65
    assert "adapter.safetensors" in err


def exported(uri: str, tiny_pipeline: Path, done: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `load_lora_weights` makes of it paints what the run's own adapter paints, alpha other than rank included."""
    from diffusers import StableDiffusionPipeline

    x, step = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(501)
    text = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def painted(adapter: Path) -> Any:
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
        pipeline.load_lora_weights(adapter)
        return pipeline.unet(x, step, text).sample

    status, _, err = run(capsys, "export", uri, "--to", folder)
    assert status == 0, err
    assert torch.equal(painted(folder), painted(done / "adapter"))
    assert run(capsys, "export", uri, "--to", folder.with_name("older"), "--step", "1", "--attempt", "1")[0] == 0
    assert not torch.equal(painted(folder.with_name("older")), painted(done / "adapter"))
    status, _, err = run(capsys, "export", uri, "--to", folder, "--step", "9")
    assert status == 65
    assert "holds no checkpoint of step 9" in err
    initial = parse(
        {**json.loads(json.dumps(parsed(done))), "metadata": {"name": "next"}},
        overrides=[f"spec.lora.initial={folder}"],
    )
    again = models.load_policy(initial.spec).adapter()  # our own reader takes it too
    for name, value in trained.load(done).policy.adapter().items():
        torch.testing.assert_close(again[name], value, rtol=2e-7, atol=0)  # scaled by 6 / 2 in the file, and back


def parsed(done: Path) -> dict[str, Any]:
    from tailorpo_trainer.results.run_folder import RunFolder

    return RunFolder(done).read_job().model_dump(mode="json", by_alias=True, exclude_none=True)


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["export", "--to", "x"]])
def test_nobody_s_storage(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *command, tmp_path / "none")
    assert (status, out) == (78, "")
    assert f"{tmp_path}/none: holds no checkpoints of a run: it has no run.json" in err.replace("//", "/")


def test_an_option_that_leads_nowhere_is_named(
    capsys: pytest.CaptureFixture[str], s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    status, _, err = run(capsys, "ls", f"s3://{s3_bucket}/run", "--endpoint", "http://127.0.0.1:9")
    assert status == 69
    assert "127.0.0.1:9 cannot be reached: check the network, or --endpoint" in err


def test_commands_find_checkpoints_that_a_run_keeps_in_s3(
    document: Make, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the output folder alone, also with an endpoint that only the document names."""
    import os

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.chdir(tmp_path)
    values = document(
        training={"iterations": 1, "promptsPerIteration": 2},
        evaluation={"everyIterations": 0},
        checkpoint={"storage": f"s3://{s3_bucket}/run", "endpoint": endpoint, "region": "us-east-1"},
    )
    loop.run(parse(values), display="quiet")
    output = tmp_path / "runs" / "test"
    assert not (output / "run.json").exists()
    capsys.readouterr()
    rows = json.loads(run(capsys, "ls", output, "--json")[1])
    assert [row["uri"] for row in rows] == [f"s3://{s3_bucket}/run/attempt-0001/step-00000001/"]
    assert trained.load(output).iteration == 1
    loop.run(parse(values), tmp_path / "here", display="quiet")  # --output replaces the storage
    assert (tmp_path / "here" / "run.json").is_file()
    assert trained.load(tmp_path / "here").iteration == 1
    assert run(capsys, "verify", tmp_path / "here")[0] == 0


def test_listing_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from tailorpo_trainer.cli import main;"
        f"main(['checkpoints', 'ls', {str(tmp_path)!r}]); main(['checkpoints', 'verify', {str(tmp_path)!r}]);"
        "sys.exit(bool({'torch', 'numpy', 'boto3'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0
