"""Names that no machine can know, and what `tailorpo validate --here` finds on this one."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tailorpo_trainer import cli
from tailorpo_trainer.rewards import registry


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(name: str = "job.yaml", **parts: Any) -> str:
    spec = {"prompts": {"builtin": "animals"}, "rewards": [{"name": "colourfulness"}], "method": {"name": "tailorpo"}}
    job = {"apiVersion": "tailorpo.dev/v1alpha1", "kind": "TailorPOJob", "metadata": {"name": "vivid"}}
    Path(name).write_text(json.dumps(job | {"spec": spec | parts}))
    return name


def validate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = cli.main(["validate", *arguments])
    return status, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("colorfulness", "colourfulness"),
        ("colourfullness", "colourfulness"),
        ("clip_score", "clip-score"),
        ("ClipScore", "clip-score"),
        ("clipscore", "clip-score"),
        ("jpeg-compressability", "jpeg-compressibility"),
        ("jpeg-incompressibilty", "jpeg-incompressibility"),
        ("HTTP", "http"),
        ("sharpnes", "sharpness"),
        ("sharpness", None),
        ("aesthetic-score", None),
        ("pick-score", None),
        ("siglip-score", None),
        ("hps-v2", None),
        ("image-reward", None),
        ("brightness", None),
    ],
)
def test_a_name_that_resembles_one_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    """Any other may be a plug-in of the trainer's image."""
    plugin = SimpleNamespace(name="sharpness", value="plugin", dist=None)
    monkeypatch.setattr(registry, "_plugins", lambda: iter([plugin]))
    write(rewards=[{"name": "colourfulness"}, {"name": name}], evaluation={"rewards": [{"name": name}]})
    lines = [
        f"warning: job.yaml: vivid: {field}.name: no reward {name!r} is built in, nor installed here: did you mean "
        f"{meant!r}?"
        for field in ("spec.rewards[1]", "spec.evaluation.rewards[0]")
    ]
    assert validate(capsys, "job.yaml") == (0, lines if meant else [])


@pytest.mark.parametrize(("name", "warned"), [("tiny-animal", True), ("tiny_animals", True), ("tiny-animals", False)])
def test_a_model_that_resembles_the_shipped_one(capsys: pytest.CaptureFixture[str], name: str, warned: bool) -> None:
    write(model={"name": name, "scoringDecoder": {"name": name}})
    lines = [
        f"warning: job.yaml: vivid: {field}.name: {name!r} is no folder here: did you mean 'tiny-animals'?"
        for field in ("spec.model", "spec.model.scoringDecoder")
    ]
    assert validate(capsys, "job.yaml") == (0, lines if warned else [])
    Path(name).mkdir()
    assert validate(capsys, "job.yaml") == (0, [])


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers anything with 501."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as found:
        found.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[attr-defined]
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port on which nobody listens, and which nobody else gets meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_what_is_all_here(capsys: pytest.CaptureFixture[str], server: str) -> None:
    Path("some.txt").write_text("a cat\n")
    write(
        model={"name": "tiny-animals", "scoringDecoder": {"name": "tiny-animals"}},
        prompts={"file": "some.txt"},
        rewards=[{"name": "clip-score"}, {"name": "http", "endpoints": [server]}],
        checkpoint={"storage": "not/yet/there"},
    )
    # The cluster alone has its prompts.
    write("cluster.yaml", prompts={"configMapKeyRef": {"name": "prompts"}})
    assert validate(capsys, "--here", "job.yaml", "cluster.yaml") == (0, [])
    assert not Path("not").exists()


def test_what_is_not_here_is_said_at_once(capsys: pytest.CaptureFixture[str], server: str, nobody: str) -> None:
    Path("file").write_text("")
    write(
        model={"name": "models/none", "scoringDecoder": {"name": "./none"}},
        lora={"initial": "/none.safetensors"},
        prompts={"file": "none.txt"},
        rewards=[
            {"name": "colorfulness"},
            {"name": "http", "endpoints": [server, nobody]},
            {"name": "clip-score", "model": "/none"},
        ],
        evaluation={"rewards": [{"name": "aesthetic"}], "prompts": {"file": "more.txt"}},
        checkpoint={"storage": "file/storage"},
    )
    write("good.yaml")
    status, lines = validate(capsys, "--here", "job.yaml", "good.yaml")
    assert status == 78
    fields = [
        "spec.model.name: 'models/none' ",
        "spec.model.scoringDecoder.name: './none' ",
        "spec.lora.initial: '/none.safetensors' is no file or folder here",
        "spec.prompts: prompts file none.txt: cannot be read: No such file",
        "spec.evaluation.prompts: prompts file more.txt: cannot be read: No such file",
        "spec.rewards[0].name: there is no reward 'colorfulness'; did you mean 'colourfulness'? (known: ",
        f"spec.rewards[1].endpoints[1]: '{nobody}' does not answer: ConnectError",
        "spec.rewards[2].model: '/none' is no folder here and no hub id",
        "spec.evaluation.rewards[0].name: there is no reward 'aesthetic'",
        "spec.checkpoint.storage: '",
    ]
    assert len(lines) == len(fields), lines
    for line, field in zip(lines, fields, strict=True):
        assert line.startswith(f"job.yaml: vivid: {field}"), line
    assert lines[-1].endswith("/file is no folder")
