"""Models, prompts and adapters from a real S3 server, and what is said when it refuses."""

import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import models, prompts, s3
from tailorpo_trainer.errors import ConfigurationError, DataError, ResourceError, UnavailableError
from tailorpo_trainer.s3 import remote
from tailorpo_trainer.spec.job import Model, Prompts, TrainingSpec


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models_bucket(s3_server: Any, tiny_pipeline: Path) -> str:
    """A bucket with the tiny pipeline at `models/tiny`, beside files that loading does not need."""
    bucket, client = "models", s3_server.client()
    client.create_bucket(Bucket=bucket)
    s3_server.upload(tiny_pipeline, bucket, "models/tiny")
    for key in ("README.md", "v1-5-pruned.safetensors", "safety_checker/model.safetensors", "unet/pickled.bin"):
        client.put_object(Bucket=bucket, Key=f"models/tiny/{key}", Body=b"not needed")
    client.put_object(Bucket=bucket, Key="models/tiny-2/model_index.json", Body=b"{}")
    return bucket


@pytest.fixture
def model(models_bucket: str, s3_bucket: str) -> Model:
    return Model(name=f"s3://{models_bucket}/models/tiny")


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every visible file: both change when a file is replaced."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def only_folder() -> Path:
    (folder,) = remote.cache().iterdir()
    return folder


def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are downloaded from now on."""
    names: list[str] = []
    real = remote.Remote._download

    def download(self: remote.Remote, name: str, *rest: Any) -> None:
        names.append(name)
        real(self, name, *rest)

    monkeypatch.setattr(remote.Remote, "_download", download)
    return names


def test_a_pipeline_is_the_same_from_s3(model: Model, tiny_pipeline: Path) -> None:
    there, here = models.load_pipeline(model), models.load_pipeline(Model(name=str(tiny_pipeline)))
    for part in ("unet", "vae", "text_encoder"):
        ours, expected = getattr(there, part).state_dict(), getattr(here, part).state_dict()
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in ours)
    assert there.scheduler.config == here.scheduler.config


def test_only_what_loading_needs_is_downloaded_and_only_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path
) -> None:
    names = downloads(monkeypatch)
    models.load_pipeline(model)
    assert sorted(names) == sorted(files(tiny_pipeline))
    before = files(only_folder())
    models.load_pipeline(model)
    models.load_pipeline(Model(name=model.name + "/"))
    assert sorted(names) == sorted(before)
    assert files(only_folder()) == before


def test_finding_a_model_downloads_no_weights(model: Model) -> None:
    folder = models.locate(model)
    assert isinstance(folder, Path)
    assert (folder / "unet" / "config.json").is_file()
    assert not list(folder.rglob("*.safetensors"))


def test_changed_damaged_and_deleted_objects(
    tiny_pipeline: Path, s3_server: Any, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.upload(tiny_pipeline, s3_bucket, "models/tiny")
    model = Model(name=f"s3://{s3_bucket}/models/tiny")
    models.load_pipeline(model)
    folder, names = only_folder(), downloads(monkeypatch)
    client = s3_server.client()
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    config["prediction_type"] = "v_prediction"
    client.put_object(Bucket=s3_bucket, Key="models/tiny/scheduler/scheduler_config.json", Body=json.dumps(config))
    client.delete_object(Bucket=s3_bucket, Key="models/tiny/tokenizer/tokenizer_config.json")
    (folder / "unet" / "config.json").write_text("")
    remote.Remote(model.name, "x").copy(["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
    assert sorted(names) == ["scheduler/scheduler_config.json", "unet/config.json"]
    assert json.loads(file.read_text())["prediction_type"] == "v_prediction"
    assert json.loads((folder / "unet" / "config.json").read_text())["in_channels"] == 4
    assert not (folder / "tokenizer" / "tokenizer_config.json").exists()


def test_a_spoilt_index_costs_a_download_no_more(model: Model) -> None:
    models.locate(model)
    (only_folder() / remote.INDEX).write_text("{")
    models.locate(model)
    assert json.loads((only_folder() / remote.INDEX).read_text())["uri"] == model.name


def test_the_wanted_variant_alone(
    s3_server: Any, s3_bucket: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tmp_path / "both"
    shutil.copytree(tiny_pipeline, both)
    pipeline = models.load_pipeline(Model(name=str(tiny_pipeline)))
    pipeline.to(torch.float16).save_pretrained(both, variant="fp16")
    s3_server.upload(both, s3_bucket, "both")
    names = downloads(monkeypatch)
    loaded = models.load_pipeline(Model(name=f"s3://{s3_bucket}/both", variant="fp16"))
    weights = [name for name in names if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(".fp16." in name for name in weights)
    assert loaded.unet.dtype == torch.float32
    pairs = zip(loaded.unet.parameters(), pipeline.unet.parameters(), strict=True)
    assert all(torch.equal(a.half(), b) for a, b in pairs)
    with pytest.raises(ConfigurationError, match=r"^spec\.model\.variant: 'bf16' is not in '.*/both': it has fp16$"):
        models.load_pipeline(Model(name=f"s3://{s3_bucket}/both", variant="bf16"))


def test_processes_that_start_together_share_one_download(model: Model, tmp_path: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from tailorpo_trainer import s3\n"
        f"remote = s3.Remote({model.name!r}, 'x'); remote.copy(list(remote.objects))\n"
        "assert 'torch' not in sys.modules"
    )
    run = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(3)
    ]
    logs = [process.communicate()[1] for process in run]
    assert [process.returncode for process in run] == [0, 0, 0], logs
    assert sum("downloading" in text for text in logs) == 1
    assert not any("test-secret-key" in text or "test-access-key" in text for text in logs)


def test_prompts(s3_server: Any, s3_bucket: str) -> None:
    s3_server.client().put_object(Bucket=s3_bucket, Key="p/all.txt", Body="\ufeffa cat\r\n# no\n\nein Bär\n".encode())
    uri = f"s3://{s3_bucket}/p/all.txt"
    assert prompts.load(Prompts(file=uri), Path("elsewhere")) == ("a cat", "ein Bär")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "holds no prompt: write one a line"),
        (b"a\n\xff\n", "is not UTF-8 text: invalid start byte"),
        (b"a\n" + b"x" * 16385, "is too long: 16385 characters, at most 16384"),
    ],
)
def test_bad_prompts(s3_server: Any, s3_bucket: str, body: bytes, message: str) -> None:
    s3_server.client().put_object(Bucket=s3_bucket, Key="p", Body=body)
    with pytest.raises(DataError) as caught:
        prompts.load(Prompts(file=f"s3://{s3_bucket}/p"), None)
    assert str(caught.value).startswith(f"prompts file s3://{s3_bucket}/p:")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://{bucket}/none.txt", "there is no such object at 127.0.0.1:"),
        ("s3://no-such-bucket/p.txt", "there is no such bucket at 127.0.0.1:"),
        ("s3://{bucket}", "names a bucket: give s3://bucket/key"),
        ("s3:///p.txt", "names no bucket: give s3://bucket/prefix"),
        ("s3://a b/p.txt", "its bucket's name is none that S3 allows"),
    ],
)
def test_prompts_that_are_not_there(s3_bucket: str, uri: str, message: str) -> None:
    uri = uri.format(bucket=s3_bucket)
    with pytest.raises(ConfigurationError) as caught:
        prompts.load(Prompts(file=uri), None)
    assert f"prompts file {uri}: {message}" in str(caught.value)


@pytest.mark.parametrize("file", ["", "/pytorch_lora_weights.safetensors"])
def test_an_adapter(
    s3_server: Any, s3_bucket: str, document: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    policy = models.load_policy(TrainingSpec.model_validate(document()["spec"]))
    for parameter in policy.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    models.save_adapter(policy, tmp_path / "lora")
    s3_server.upload(tmp_path / "lora", s3_bucket, "lora")
    uri = f"s3://{s3_bucket}/lora{file}"
    lora = {"rank": 2, "alpha": 2, "initial": uri}
    again = models.load_policy(TrainingSpec.model_validate(document(lora=lora)["spec"]))
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters, again.parameters, strict=True))
    lora["initial"] = f"s3://{s3_bucket}/none"
    with pytest.raises(ConfigurationError, match=r"^spec\.lora\.initial: '.*/none': the bucket .* holds nothing there"):
        models.load_policy(TrainingSpec.model_validate(document(lora=lora)["spec"]))


def refusal(name: str, kind: type[Exception] = ConfigurationError) -> str:
    """What is said of a model, without the field and its value; never a secret."""
    with pytest.raises(kind) as caught:
        models.load_pipeline(Model(name=name))
    text = str(caught.value)
    assert text.startswith(f"spec.model.name: {name!r}")
    assert "\n" not in text
    assert "test-secret-key" not in text
    return text.removeprefix(f"spec.model.name: {name!r}").lstrip(": ")


def test_no_such_bucket(s3_bucket: str) -> None:
    assert refusal("s3://no-such-bucket/x").startswith("there is no such bucket at 127.0.0.1:")


def test_no_such_prefix(model: Model) -> None:
    assert refusal(model.name[:-1]).endswith("holds nothing there: check the prefix")


def test_a_prefix_without_a_pipeline(model: Model) -> None:
    assert refusal(model.name.removesuffix("/tiny")) == "is no diffusers pipeline: it has no model_index.json there"


def test_a_revision_of_a_prefix(model: Model) -> None:
    with pytest.raises(ConfigurationError, match=r"^spec\.model\.revision: 'main': only models on the hub have"):
        models.load_pipeline(Model(name=model.name, revision="main"))


def test_a_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert refusal(f"s3://{s3_bucket}/x") == ("the secret key does not fit the access key: check AWS_SECRET_ACCESS_KEY")


def test_an_unknown_access_key(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "the access key is not known to 127.0.0.1:" in refusal(f"s3://{s3_bucket}/x")


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refusal(f"s3://{s3_bucket}/x").startswith("no S3 credentials were found: set AWS_ACCESS_KEY_ID and")


def test_a_profile_that_is_not_there(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert refusal(f"s3://{s3_bucket}/x") == "The config profile (nobody) could not be found"


def test_an_endpoint_that_is_no_url(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    assert refusal(f"s3://{s3_bucket}/x") == "AWS_ENDPOINT_URL is no URL such as http://127.0.0.1:8333"


def test_an_endpoint_that_is_not_there(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:test-secret-key@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    assert refusal(f"s3://{s3_bucket}/x", UnavailableError) == (
        "127.0.0.1:9 cannot be reached: check the network, or AWS_ENDPOINT_URL"
    )


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (500, b"", UnavailableError, "failed with 500 after all retries"),
        (503, b"<Error><Code>SlowDown</Code></Error>", UnavailableError, "failed with 503 SlowDown after all retries"),
        (403, b"<Error><Code>AccessDenied</Code></Error>", ConfigurationError, "these credentials may not read it"),
        (400, b"<Error><Code>ExpiredToken</Code></Error>", ConfigurationError, "the session token has expired"),
        (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", ConfigurationError, "in another region"),
        (400, b"<Error><Code>Odd</Code><Message>no</Message></Error>", ConfigurationError, "answered 400 Odd: no"),
        (200, b"<html>Welcome", UnavailableError, "failed with 500 after all retries"),
    ],
)
def test_other_answers(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, kind: type[Exception], message: str
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        try:
            assert message in refusal(f"s3://{s3_bucket}/x", kind)
        finally:
            server.shutdown()


def test_too_little_room_is_said_before_downloading(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    assert "MB to download, and" in refusal(model.name, ResourceError)
    assert files(only_folder()) == {}


def test_a_full_disk(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote.Remote, "_download", full)
    assert refusal(model.name, ResourceError).startswith("no space is left in ")


def test_a_cache_that_cannot_be_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refusal(model.name).endswith("Not a directory: set XDG_CACHE_HOME to a folder that can be written")


def test_names_that_leave_the_folder_are_refused(
    s3_bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.client().put_object(Bucket=s3_bucket, Key="m/a.json", Body=b"1")
    there = s3.Remote(f"s3://{s3_bucket}/m", "x")
    for name in ("../a.json", "a/../../b.json", "/etc/passwd", "a//b.json", remote.INDEX):
        there.objects[name] = there.objects["a.json"]
        with pytest.raises(DataError, match="is no name for a file"):
            there.copy([name])


def test_progress_goes_to_the_log(
    model: Model, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="tailorpo_trainer"):
        models.locate(model)
    assert caplog.messages[0].startswith(f"{model.name}: downloading ")
    assert capfd.readouterr() == ("", "")
