"""Loading a model from the hub, a folder or this package; and initial adapters."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import models, tiny_animals
from tailorpo_trainer.errors import ConfigurationError, DataError, ResourceError, UnavailableError
from tailorpo_trainer.models import hub as explaining
from tailorpo_trainer.models import sources
from tailorpo_trainer.spec.job import Model, TrainingSpec

pytestmark = pytest.mark.timeout(300)  # on a busy machine the requests to the hub take a minute

# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline that a test may damage."""
    shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def refusal(kind: type[Exception] = ConfigurationError, **model: Any) -> str:
    """The error message for a model, its name replaced by NAME."""
    with pytest.raises(kind) as caught:
        models.load_pipeline(Model(**model))
    text = str(caught.value)
    assert text.startswith("spec.model.")
    assert "\n" not in text
    return text.replace(repr(model["name"]), "NAME")


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(name=str(tmp_path / "none")).startswith(
        "spec.model.name: NAME is no folder here; give 'tiny-animals'"
    )
    assert refusal(name="none").startswith("spec.model.name: NAME is no folder here; give 'tiny-")


def test_a_folder_without_an_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    assert refusal(name=str(folder)) == (
        "spec.model.name: NAME is no diffusers pipeline: the folder has no model_index.json"
    )


@pytest.mark.parametrize(("text", "message"), [("{", "Expecting"), ("[]", "names no pipeline"), ("{}", "names no")])
def test_an_index_that_is_none(folder: Path, text: str, message: str) -> None:
    (folder / "model_index.json").write_text(text)
    found = refusal(DataError, name=str(folder))
    assert found.startswith("spec.model.name: NAME cannot be read: model_index.json")
    assert message in found


def test_a_revision_of_a_folder(folder: Path) -> None:
    assert refusal(name=str(folder), revision="main") == (
        "spec.model.revision: 'main': only models on the hub have revisions, and NAME is none: remove it"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert refusal(name=str(folder)) == f"spec.model.name: NAME has no weights of its {part} in safetensors"


@pytest.mark.parametrize(
    ("part", "file"), [("scheduler", "scheduler_config.json"), ("tokenizer", "vocab.json"), ("vae", "config.json")]
)
def test_a_part_without_its_small_files(folder: Path, part: str, file: str) -> None:
    for path in [*(folder / part).glob("*.json"), *(folder / part).glob("*.txt")]:
        path.unlink()
    assert refusal(name=str(folder)) == (f"spec.model.name: NAME has no {part}/{file}: give a whole diffusers pipeline")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_are_never_loaded(folder: Path, part: str) -> None:
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        torch.save({}, folder / part / name)
    assert refusal(name=str(folder)) == (
        f"spec.model.name: NAME has no weights of its {part} in safetensors, only pickles, which are not loaded: "
        "save it again by save_pretrained"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("size", [0, 5, 1000])
def test_torn_weights(folder: Path, part: str, size: int) -> None:
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:size])
    assert refusal(DataError, name=str(folder)).startswith("spec.model.name: NAME cannot be loaded: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "is a StableDiffusionPipeline: Stable"),
        (
            {"_class_name": "FluxPipeline", "unet": None},
            "is a FluxPipeline: Stable Diffusion 1.x and 2.x",
        ),
        ({"unet": [None, None]}, "is a StableDiffusionPipeline: Stable"),
    ],
)
def test_another_family(folder: Path, values: dict[str, Any], message: str) -> None:
    change(folder / "model_index.json", **values)
    assert message in refusal(name=str(folder))


def test_an_unknown_pipeline_class(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="NoPipeline")
    assert refusal(DataError, name=str(folder)).startswith("spec.model.name: NAME cannot be loaded: ")


def test_an_inpainting_model(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(folder / "unet") | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    assert refusal(name=str(folder)) == (
        "spec.model.name: NAME is a StableDiffusionPipeline whose denoiser takes 9 channels, not 4: Stable Diffusion "
        "1.x and 2.x text-to-image pipelines can be trained"
    )


def test_a_denoiser_that_needs_more_than_text(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(folder / "unet") | {"class_embed_type": "timestep"}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    assert "denoiser needs more than text (class_embed_type: 'timestep'): " in refusal(name=str(folder))


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        ("unet", {"time_cond_proj_dim": 16}, "denoiser needs more than text (time_cond_proj_dim: 16)"),
        ("unet", {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 8}, "needs more than text (encoder_hid_dim"),
        ("unet", {"attention_type": "gated"}, "denoiser needs more than text (attention_type: 'gated')"),
        ("unet", {"out_channels": 8}, "denoiser gives 8 channels, not 4"),
        ("unet", {"sample_size": -8}, "sample_size -8, which is no size"),
        ("unet", {"sample_size": None}, "sample_size None, which is no size"),
        ("unet", {"cross_attention_dim": 40}, "text embeddings are"),
        ("vae", {"scaling_factor": 0}, "decoder has scaling_factor 0"),
        ("vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "latents are normalised"),
        ("vae", {"out_channels": 4, "in_channels": 4}, "decoder gives 4 channels, not 3"),
    ],
)
def test_a_component_that_is_not_known_to_be_right(
    folder: Path, component: str, values: dict[str, Any], message: str
) -> None:
    import diffusers

    kind = getattr(diffusers, json.loads((folder / component / "config.json").read_text())["_class_name"])
    config = kind.load_config(folder / component) | values
    made = kind.from_config({key: value for key, value in config.items() if key != "sample_size" or value})
    made.save_pretrained(folder / component)
    change(folder / component / "config.json", **{key: value for key, value in values.items() if value is not None})
    assert message in refusal(name=str(folder))


@pytest.mark.parametrize("length", [10**30, 78, 2])
def test_a_tokenizer_longer_than_the_text_encoder(folder: Path, length: int) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    assert "whose tokenizer has model_max_length" in refusal(name=str(folder))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_as_deep_as_it_is_long(folder: Path, file: str) -> None:
    (folder / file).write_text('{"_class_name":' + "[" * 200_000)
    assert refusal(DataError, name=str(folder)).startswith("spec.model.name: NAME cannot be ")


def test_a_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said at once: the hub would be asked for half a minute, and the end would be one that is tried again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "real.safetensors").write_bytes(b"weights")
    assert refusal(name="models/real.safetensors").startswith("spec.model.name: NAME is a file: give the folder of a")
    assert refusal(name="models/rael.safetensors").startswith("spec.model.name: NAME is no file here; give 'tiny-")
    assert refusal(name="models/typo").startswith(
        "spec.model.name: NAME is not in the folder models that is here; give"
    )
    (tmp_path / "models" / "photos").mkdir()
    assert "that is here, did you mean models/photos?; give" in refusal(name="models/photo")


def test_names_that_no_file_can_have() -> None:
    for name in ("x" * 2000, "~nobody-of-this-name/model/x", "a\0b/c/d"):
        assert "is no folder here" in refusal(name=name)[-300:]


def test_variants_of_a_folder(folder: Path) -> None:
    assert refusal(name=str(folder), variant="fp16") == (
        "spec.model.variant: 'fp16' is not in NAME: it has no variants: remove it"
    )
    for file in [*folder.glob("*/*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert refusal(name=str(folder), variant="bf16") == "spec.model.variant: 'bf16' is not in NAME: it has fp16"
    assert refusal(name=str(folder)) == (
        "spec.model.name: NAME has no weights of its unet in safetensors but those of variant fp16: set "
        "spec.model.variant"
    )
    assert models.load_pipeline(Model(name=str(folder), variant="fp16")).unet.dtype == torch.float32


def test_which_weights_are_chosen() -> None:
    names = [
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16-00001-of-00001.safetensors",
        "text_encoder/other.safetensors",
        "safety_checker/model.safetensors",
        "v1-5-pruned.safetensors",
    ]
    assert sources.choose_weights(names, Model()) == [names[0], names[1], names[4], names[5]]
    assert sources.choose_weights(names, Model(variant="fp16")) == [names[2], names[4], names[6]]


def test_a_full_disk_and_a_closed_cache() -> None:
    model = Model(name="org/model")
    wrapped = OSError("cannot")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert isinstance(explaining.pipeline_error(model, False, wrapped), ResourceError)
    closed = explaining.pipeline_error(model, False, PermissionError(13, "Permission denied", "/cache"))
    assert isinstance(closed, ConfigurationError)
    assert "/cache may not be used (Permission denied): set HF_HOME" in str(closed)
    assert isinstance(explaining.pipeline_error(model, True, MemoryError()), ResourceError)


# --- the hub ----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def handler(tiny: Path) -> type[http.server.BaseHTTPRequestHandler]:
    """A fake hub, whose repositories fail in different ways."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/").split("/")
            if path[:2] == ["api", "models"]:
                name, rest = "/".join(path[2:4]), path[4:]
            else:
                name, rest = "/".join(path[:2]), path[2:]
            self.serve(name, rest, api=path[0] == "api")

        do_HEAD = do_GET  # noqa: N815

        def serve(self, name: str, rest: list[str], api: bool) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            match name:
                case "org/none":
                    return self.refuse(404, "RepoNotFound")
                case "org/private":
                    return self.refuse(401)
                case "org/gated" if not api:
                    return self.refuse(403, "GatedRepo")
                case "org/gated-401" if not api:
                    return self.refuse(401, "GatedRepo")
                case "org/disabled":
                    return self.refuse(403, message="Access to this resource is disabled.")
                case "org/token":
                    return self.refuse(401, message="Invalid credentials in Authorization header")
                case "org/forbidden":
                    return self.refuse(403)
                case "org/broken":
                    return self.refuse(500)
                case "org/busy":
                    return self.refuse(429)
                case "org/silent":
                    return self.close()
            if revision not in ("main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            files = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
            match name:
                case "org/no-index":
                    del files["model_index.json"]
                case "org/pickled":
                    files = {key.replace(".safetensors", ".bin"): value for key, value in files.items()}
                case "org/decoder" | "org/pickled-decoder":
                    files = {path.name: path.read_bytes() for path in tiny_animals.SCORING_DECODER.iterdir()}
                    if name == "org/pickled-decoder":
                        files = {key.replace(".safetensors", ".bin"): value for key, value in files.items()}
                case "org/peft":
                    files = {path.name: path.read_bytes() for path in (tiny / "peft").iterdir()}
                case "org/no-variant":
                    files = {key: value for key, value in files.items() if ".fp16." not in key}
                case "org/sdxl":
                    index = json.loads(files["model_index.json"])
                    index |= {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "X"]}
                    files["model_index.json"] = json.dumps(index).encode()
            if not api:
                file = "/".join(rest[2:])
                return self.refuse(404, "EntryNotFound") if file not in files else self.answer(files[file])
            table: Any = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            if rest and rest[0] == "tree":
                table = [
                    {"type": "file", "path": key, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for key, data in files.items()
                ]
            return self.answer(json.dumps(table).encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, status: int, code: str = "", message: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if code:
                self.send_header("X-Error-Code", code)
            if message:
                self.send_header("X-Error-Message", message)
            self.end_headers()

        def close(self) -> None:
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    return Hub


# Loads each model of stdin and prints the result. Runs in a process of its own, since the endpoint is set at import.
SCRIPT = """
import json, os, sys, time
time.sleep = lambda *_: None  # between the retries
from tailorpo_trainer import models
from tailorpo_trainer.spec import job as spec
for case in json.load(sys.stdin):
    os.environ.pop("HF_TOKEN", None)
    if case.pop("token", False):
        os.environ["HF_TOKEN"] = "hf_secret"
    if case.pop("offline", False):
        import huggingface_hub.constants
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        if (decoder := case.pop("decoder", None)):
            print(json.dumps(["", type(models.load_decoder(spec.ScoringDecoder(**decoder))).__name__]), flush=True)
            continue
        if (initial := case.pop("initial", None)):
            unet = models.load_pipeline(spec.Model(name="org/tiny")).unet
            models.attach_adapter(unet, spec.TrainingSpec.model_construct(
                lora=spec.LoRA(initial=initial), training=spec.Training()))
        else:
            pipeline = models.load_pipeline(spec.Model(**case))
        print(json.dumps(["", str(pipeline.unet.dtype) + " " + str(pipeline.safety_checker)]), flush=True)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""

ASKED: dict[str, dict[str, Any]] = {
    "positive": {"name": "org/tiny"},
    "branch": {"name": "org/tiny", "revision": "v1"},
    "commit and variant": {"name": "org/tiny", "revision": COMMIT, "variant": "fp16"},
    "none": {"name": "org/none"},
    "private": {"name": "org/private"},
    "gated": {"name": "org/gated"},
    "gated without a token": {"name": "org/gated-401"},
    "disabled": {"name": "org/disabled"},
    "token": {"name": "org/token", "token": True},
    "forbidden": {"name": "org/forbidden"},
    "broken": {"name": "org/broken"},
    "busy": {"name": "org/busy"},
    "silent": {"name": "org/silent"},
    "revision": {"name": "org/tiny", "revision": "v9"},
    "no index": {"name": "org/no-index"},
    "pickled": {"name": "org/pickled"},
    "no variant": {"name": "org/no-variant", "variant": "fp16"},
    "other variant": {"name": "org/tiny", "variant": "bf16"},
    "sdxl": {"name": "org/sdxl"},
    "no id": {"name": "org/na me"},
    "lora of peft": {"initial": "org/peft"},
    "no lora": {"initial": "org/tiny"},
    "no lora repository": {"initial": "org/none"},
    "decoder": {"decoder": {"name": "org/decoder", "revision": "v1"}},
    "no decoder": {"decoder": {"name": "org/tiny"}},
    "pickled decoder": {"decoder": {"name": "org/pickled-decoder"}},
    "no decoder repository": {"decoder": {"name": "org/none"}},
    "decoder's revision": {"decoder": {"name": "org/decoder", "revision": "v9"}},
    # Now offline: what is cached still loads.
    "offline, cached": {"name": "org/tiny", "offline": True},
    "offline, lora of peft": {"initial": "org/peft", "offline": True},
    "offline": {"name": "org/other"},
}
UNREACHABLE: dict[str, dict[str, Any]] = {"refused": {"name": "org/tiny"}}


def ask(endpoint: str, home: Path, cases: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(list(cases.values())),
        capture_output=True,
        text=True,
        env=environment | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    return dict(zip(cases, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def hub(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The result of every request to the hub, by the model's name."""
    import peft

    both = tmp_path_factory.mktemp("hub") / "tiny"
    shutil.copytree(tiny_pipeline, both)
    models.load_pipeline(Model(name=str(both))).to(torch.float16).save_pretrained(both, variant="fp16")
    adapted = peft.LoraConfig(r=8, target_modules=["to_q", "to_v"])
    peft.get_peft_model(models.load_pipeline(Model(name=str(both))).unet, adapted).save_pretrained(str(both / "peft"))
    home = tmp_path_factory.mktemp("home")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(both)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answers = ask(f"http://127.0.0.1:{server.server_port}", home / "a", ASKED)
        server.shutdown()
    return answers | ask("http://127.0.0.1:9", home / "b", UNREACHABLE)


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("positive", "", "torch.float32 None"),
        ("decoder", "", "AutoencoderTiny"),
        ("branch", "", "torch.float32 None"),
        ("commit and variant", "", "torch.float32 None"),
        ("lora of peft", "", "torch.float32 None"),
        ("offline, cached", "", "torch.float32 None"),
        ("offline, lora of peft", "", "torch.float32 None"),
    ],
)
def test_the_hub_gives(hub: dict[str, list[str]], case: str, kind: str, message: str) -> None:
    assert hub[case] == [kind, message]


REFUSED = "ConfigurationError"
AWAY = "UnavailableError"


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("none", REFUSED, "spec.model.name: 'org/none' is neither here nor on the hub, or is private there: check the"),
        ("private", REFUSED, "spec.model.name: 'org/private' is neither here nor on the hub, or is private there: "),
        ("gated", REFUSED, "spec.model.name: 'org/gated' is gated: accept its licence on its hub page, then set HF_TO"),
        ("gated without a token", REFUSED, "spec.model.name: 'org/gated-401' is gated: accept its licence"),
        ("disabled", REFUSED, "spec.model.name: 'org/disabled' has been disabled on the hub: choose another"),
        ("token", REFUSED, "spec.model.name: 'org/token': the hub refuses this token (401): check HF_TOKEN"),
        ("forbidden", REFUSED, "spec.model.name: 'org/forbidden': the hub refuses this token (403): check HF_TOKEN"),
        ("broken", AWAY, "spec.model.name: 'org/broken': the hub answered 500: try again later, or name a folder"),
        ("busy", AWAY, "spec.model.name: 'org/busy': the hub answered 429: try again later, or name a folder"),
        ("silent", AWAY, "spec.model.name: 'org/silent' is neither in this machine's cache nor reachable on the hub: "),
        ("revision", REFUSED, "spec.model.revision: 'v9' is no branch, tag or commit of 'org/tiny' on the hub"),
        ("no index", REFUSED, "spec.model.name: 'org/no-index' has no model_index.json on the hub: give the id of an"),
        ("pickled", REFUSED, "spec.model.name: 'org/pickled' has no weights of its unet in safetensors, only pickles"),
        ("no variant", REFUSED, "spec.model.variant: 'fp16' is not in 'org/no-variant': it has no variants: remove it"),
        ("other variant", REFUSED, "spec.model.variant: 'bf16' is not in 'org/tiny': it has fp16"),
        ("sdxl", REFUSED, "spec.model.name: 'org/sdxl' is a StableDiffusionXLPipeline: Stable Diffusion 1.x and 2.x"),
        ("no id", REFUSED, "spec.model.name: 'org/na me' is no hub id: "),
        ("no lora", REFUSED, "spec.lora.initial: 'org/tiny' has no pytorch_lora_weights.safetensors on the hub: give"),
        ("no lora repository", REFUSED, "spec.lora.initial: 'org/none' is neither here nor on the hub, or is private"),
        ("no decoder", REFUSED, "spec.model.scoringDecoder.name: 'org/tiny' has no config.json on the hub: give"),
        ("pickled decoder", REFUSED, "spec.model.scoringDecoder.name: 'org/pickled-decoder' has no diffusion_pyto"),
        ("no decoder repository", REFUSED, "spec.model.scoringDecoder.name: 'org/none' is neither here nor on the hub"),
        ("decoder's revision", REFUSED, "spec.model.scoringDecoder.revision: 'v9' is no branch, tag or commit"),
        ("offline", REFUSED, "spec.model.name: 'org/other' is not whole in this machine's cache, and HF_HUB_OFFLINE"),
        ("refused", AWAY, "spec.model.name: 'org/tiny' is neither in this machine's cache nor reachable on the hub: "),
    ],
)
def test_the_hub_refuses(hub: dict[str, list[str]], case: str, kind: str, message: str) -> None:
    assert hub[case][0] == kind, hub[case]
    assert hub[case][1].startswith(message)
    assert "\n" not in hub[case][1]
    assert "hf_secret" not in hub[case][1]


def test_a_hub_that_is_away_may_be_tried_again() -> None:
    model = Model(name="org/model")
    assert isinstance(explaining.pipeline_error(model, False, ConnectionResetError(104, "reset")), UnavailableError)


# --- adapters ---------------------------------------------------------------------------------------------------------

LORA: dict[str, Any] = {"rank": 2, "alpha": 6}


@pytest.fixture
def adapter(document: Callable[..., dict[str, Any]], tmp_path: Path) -> tuple[Any, Path]:
    """A policy with a strong adapter of rank 2 and alpha 6, and the folder it is saved in."""
    policy = models.load_policy(training(document, **LORA))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in policy.parameters:
            torch.nn.init.normal_(parameter, std=0.3)
    models.save_adapter(policy, tmp_path / "lora")
    return policy, tmp_path / "lora"


def training(document: Callable[..., dict[str, Any]], **lora: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(document(lora=lora)["spec"])


def predictions(policy: Any) -> Any:
    x = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
    with torch.no_grad():
        return policy.predict(x, 1, policy.embed(["a cat", "a dog"]))


def bad_adapter(
    document: Callable[..., dict[str, Any]], kind: type[Exception] = ConfigurationError, **lora: Any
) -> str:
    with pytest.raises(kind) as caught:
        models.load_policy(training(document, **lora))
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(repr(lora["initial"]), "NAME")


def close(found: Any, wanted: Any) -> bool:
    """Equal except one rounding of each weight if alpha / rank is no power of two; guidance amplifies it."""
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.mark.parametrize("file", ["", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("alpha", [6, 2, 1.5])
def test_an_adapter_begins_where_the_other_ended(
    document: Any, adapter: tuple[Any, Path], file: str, alpha: float
) -> None:
    """The document's alpha replaces that of the file, and the pictures are the same."""
    policy, folder = adapter
    again = models.load_policy(training(document, rank=2, alpha=alpha, initial=str(folder / file)))
    assert again.adapter().keys() == policy.adapter().keys()
    assert close(predictions(again), predictions(policy))
    fresh = models.load_policy(training(document, **LORA))
    with policy.reference():
        assert torch.equal(predictions(policy), predictions(fresh))
    assert (predictions(policy) - predictions(fresh)).abs().max() > 0.01
    with again.reference():
        assert torch.equal(predictions(again), predictions(fresh))


def test_diffusers_reads_our_adapter_as_we_do(tiny_pipeline: Path, adapter: tuple[Any, Path]) -> None:
    policy, folder = adapter
    pipeline = models.load_pipeline(Model(name=str(tiny_pipeline)))
    pipeline.load_lora_weights(str(folder))
    ours = predictions(policy)
    policy.unet = pipeline.unet
    assert close(predictions(policy), ours)


def test_fewer_modules_leave_the_others_fresh(document: Any, tmp_path: Path) -> None:
    policy = models.load_policy(training(document, rank=2, alpha=4, targetModules=["to_q"]))
    for parameter in policy.parameters:
        torch.nn.init.normal_(parameter)
    models.save_adapter(policy, tmp_path)
    more = training(document, rank=2, alpha=4, targetModules=["to_q", "to_k"], initial=str(tmp_path))
    assert torch.equal(predictions(models.load_policy(more)), predictions(policy))  # 4 / 2 is a power of two


def test_another_rank_or_module(document: Any, adapter: tuple[Any, Path]) -> None:
    name = str(adapter[1])
    assert bad_adapter(document, rank=4, alpha=6, initial=name) == "spec.lora.rank: is 4, but NAME has rank 2"
    text = bad_adapter(document, **LORA, targetModules=["to_q"], initial=name)
    assert text.startswith("spec.lora.initial: NAME has weights that this adapter has not, such as ")
    assert "set spec.lora.targetModules to the modules it adapts" in text


def test_without_its_header_an_adapter_means_the_same(document: Any, adapter: tuple[Any, Path], tmp_path: Path) -> None:
    policy, folder = adapter
    file = save(tmp_path, load(folder))
    for alpha in (6, 2):
        again = models.load_policy(training(document, rank=2, alpha=alpha, initial=file))
        assert close(predictions(again), predictions(policy))


@pytest.mark.parametrize("modules", [["to_q", "to_out.0"], ["to_q", "proj_in", "conv1"], ["conv1", "time_emb_proj"]])
def test_an_adapter_of_the_older_layout(document: Any, tmp_path: Path, modules: list[str]) -> None:
    """The former layout: diffusers' names for attention, PEFT's for other modules, and alpha in the header only."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    policy = models.load_policy(training(document, **LORA, targetModules=modules))
    for parameter in policy.parameters:
        torch.nn.init.normal_(parameter, std=0.3)
    config = policy.unet.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(policy.unet)),
        unet_lora_adapter_metadata=config | {"target_modules": sorted(config["target_modules"])},
    )
    again = models.load_policy(training(document, **LORA, targetModules=modules, initial=str(tmp_path)))
    assert torch.equal(predictions(again), predictions(policy))
    other = models.load_policy(training(document, rank=2, alpha=3, targetModules=modules, initial=str(tmp_path)))
    assert close(predictions(other), predictions(policy))
    if modules[0] == "to_q":  # with the older names and no header, alpha is the document's
        bare = save(tmp_path, load(tmp_path))
        again = models.load_policy(training(document, **LORA, targetModules=modules, initial=bare))
        assert torch.equal(predictions(again), predictions(policy))


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "pytorch_lora_weights.safetensors")


def save(folder: Path, weights: dict[str, torch.Tensor]) -> str:
    from safetensors.torch import save_file

    save_file(weights, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def test_weights_of_a_kohya_file(document: Any, adapter: tuple[Any, Path], tmp_path: Path) -> None:
    policy, _ = adapter
    weights: dict[str, torch.Tensor] = {}
    for key, value in policy.adapter().items():
        module, _, matrix = key.partition(".lora_")
        name = "lora_unet_" + module.replace(".", "_")
        weights[f"{name}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = value.detach()
        weights[f"{name}.alpha"] = torch.tensor(6.0)
    file = save(tmp_path, weights)
    assert torch.equal(predictions(models.load_policy(training(document, **LORA, initial=file))), predictions(policy))
    again = models.load_policy(training(document, rank=2, alpha=2, initial=file))
    assert close(predictions(again), predictions(policy))
    weights[next(key for key in weights if key.endswith(".alpha"))] = torch.tensor(2.0)
    assert bad_adapter(document, **LORA, initial=save(tmp_path, weights)) == (
        "spec.lora.initial: NAME has several alphas (2, 6): give a LoRA that has one"
    )


def test_files_that_are_no_adapter(document: Any, adapter: tuple[Any, Path], tmp_path: Path) -> None:
    weights = load(adapter[1])
    first = next(iter(weights))

    def said(changed: dict[str, torch.Tensor], kind: type[Exception] = ConfigurationError) -> str:
        return bad_adapter(document, kind, **LORA, initial=save(tmp_path, changed)).removeprefix("spec.lora.initial: ")

    assert said({"conv.weight": torch.zeros(1)}) == "NAME is no LoRA: it holds conv.weight"
    assert said({}) == "NAME is no LoRA: it is empty"
    assert said(weights | {first: weights[first] * torch.nan}, DataError).startswith(
        "NAME holds NaN or infinite weights"
    )
    text_encoder = {key.replace("unet.", "text_encoder."): value.clone() for key, value in weights.items()}
    assert said(weights | text_encoder).startswith("NAME adapts the text encoder too")
    assert said(weights | {first: torch.zeros(2, 99)}).startswith("NAME is a LoRA of another model: ")
    dora = {"unet.down_blocks.0.to_q.lora.dora_scale": torch.zeros(1)}
    assert said(weights | dora) == "NAME is a DoRA, not a plain LoRA"


def test_places_without_an_adapter(document: Any, tmp_path: Path) -> None:
    def said(path: Path | str, kind: type[Exception] = ConfigurationError) -> str:
        return bad_adapter(document, kind, **LORA, initial=str(path))

    assert said(tmp_path / "none").startswith("spec.lora.initial: NAME is no file or folder here: give one with a pyt")
    assert said(tmp_path) == "spec.lora.initial: NAME has no safetensors file, such as pytorch_lora_weights.safetensors"
    pickled = tmp_path / "pytorch_lora_weights.bin"
    torch.save({"unet.lora": torch.zeros(1)}, pickled)
    assert said(pickled).startswith("spec.lora.initial: NAME has no safetensors file")
    assert said(tmp_path).startswith("spec.lora.initial: NAME has no safetensors file")
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    assert said(tmp_path, DataError).startswith("spec.lora.initial: NAME cannot be read: ")
    (tmp_path / "b.safetensors").touch()
    assert said(tmp_path) == "spec.lora.initial: NAME has several LoRAs: name one file, such as a.safetensors"
