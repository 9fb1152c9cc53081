"""The adapter's file: every reader loads the same weights as the trainer's, for all adapted modules."""

import copy
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tailorpo_trainer import models
from tailorpo_trainer.errors import ResourceError
from tailorpo_trainer.spec.job import LoRA, Training, TrainingSpec

FILE = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
OTHERS = [
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj", "time_embedding.linear_1", "conv_in",
    "conv_out", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv",
]  # fmt: skip
MIXTURES = [
    *([module] for module in ["to_q", *OTHERS]),
    *(["to_q", "to_out.0", module] for module in OTHERS),
    ["conv_shortcut", "ff.net.0.proj", "time_emb_proj"],
    ATTENTION + OTHERS,
]


@pytest.fixture(scope="module")
def stock(tiny_pipeline: Path) -> Any:
    """A pipeline as in Stable Diffusion 1.x, whose transformers begin with a convolution."""
    return pipeline(tiny_pipeline, linear=False)


@pytest.fixture(scope="module")
def linear(tiny_pipeline: Path) -> Any:
    """A pipeline as in Stable Diffusion 2.x, whose transformers begin with a linear layer."""
    return pipeline(tiny_pipeline, linear=True)


def pipeline(folder: Path, linear: bool) -> Any:
    """The smallest model that has all kinds of modules, because loading takes time for each module."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    found = StableDiffusionPipeline.from_pretrained(folder)
    changes = {"use_linear_projection": linear, "up_block_types": ("UpBlock2D", "UpBlock2D")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**found.unet.config, **changes})
    found.register_modules(unet=unet.eval().requires_grad_(False))
    return found


def trained(stock: Any, lora: LoRA) -> tuple[Any, dict[str, torch.Tensor]]:
    """The denoiser with the trainer's adapter, and the adapter's weights, none of which is 0."""
    unet = copy.deepcopy(stock.unet)
    run: Any = SimpleNamespace(lora=lora, training=Training())
    models.attach_adapter(unet, run)
    weights = {name: value for name, value in unet.named_parameters() if value.requires_grad}
    generator = torch.Generator().manual_seed(1)
    for value in weights.values():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return unet, weights


@torch.no_grad()
def drawn(unet: Any) -> Any:
    x, step = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8), torch.tensor(501)
    return unet(x, step, torch.linspace(-1, 1, 2 * 16 * 16).view(2, 16, 16)).sample


def close(found: Any, wanted: Any, by: float = 1e-6) -> bool:
    return bool((found - wanted).abs().max() <= by)


def readings(stock: Any, folder: Path, lora: LoRA) -> Iterator[tuple[str, Any]]:
    """The denoisers that diffusers and PEFT load from a file; every tensor must be used."""
    from peft import LoraConfig, set_peft_model_state_dict

    saved = load_file(folder / FILE)
    for reader, source in (("folder", str(folder)), ("state dict", dict(saved))):
        stock.load_lora_weights(source, adapter_name="theirs")
        try:
            found = {"unet." + name: value for name, value in stock.unet.named_parameters() if ".lora_" in name}
            loaded = {name.replace(".theirs.", "."): value for name, value in found.items()}
            assert loaded.keys() == saved.keys(), reader
            assert all(torch.equal(value, saved[name]) for name, value in loaded.items()), reader
            yield reader, stock.unet
        finally:
            stock.unload_lora_weights()
    unet = copy.deepcopy(stock.unet)
    unet.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.rank, target_modules=list(lora.target_modules)))
    result = set_peft_model_state_dict(unet, {name.removeprefix("unet."): value for name, value in saved.items()})
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "lora" in name]
    yield "peft", unet


@pytest.mark.parametrize("modules", MIXTURES, ids="+".join)
def test_every_reader_loads_every_kind_of_module_whole(stock: Any, tmp_path: Path, modules: list[str]) -> None:
    """Alpha differs from the rank, so that the scale is tested too."""
    whole(stock, tmp_path, modules)


@pytest.mark.parametrize("modules", [["proj_in"], ["proj_out"], ["to_q", "proj_in", "proj_out", "conv2"]], ids="+".join)
def test_so_it_is_with_linear_projections(linear: Any, tmp_path: Path, modules: list[str]) -> None:
    whole(linear, tmp_path, modules)


def whole(stock: Any, tmp_path: Path, modules: list[str]) -> None:
    lora = LoRA(rank=4, alpha=8, target_modules=modules)
    unet, weights = trained(stock, lora)
    models.export_adapter(weights, lora, tmp_path)
    assert len(load_file(tmp_path / FILE)) == len(weights)
    ours = drawn(unet)
    assert not close(drawn(stock.unet), ours)
    for reader, theirs in readings(stock, tmp_path, lora):
        assert close(drawn(theirs), ours), reader


@pytest.mark.parametrize(("rank", "alpha"), [(4, 1), (4, 4), (3, 7)])
def test_every_reader_finds_the_same_scale(stock: Any, tmp_path: Path, rank: int, alpha: float) -> None:
    lora = LoRA(rank=rank, alpha=alpha, target_modules=["to_q", "conv1"])
    unet, weights = trained(stock, lora)
    models.export_adapter(weights, lora, tmp_path)
    for reader, theirs in readings(stock, tmp_path, lora):
        # The factor 7 / 3 rounds each weight once, to the precision of float32.
        assert close(drawn(theirs), drawn(unet), 1e-6 if rank != 3 else 5e-6), reader


def test_it_is_what_diffusers_writes(stock: Any, tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict

    lora = LoRA(rank=2, alpha=2, target_modules=ATTENTION + OTHERS)
    unet, weights = trained(stock, lora)
    models.export_adapter(weights, lora, tmp_path / "ours")
    stock.save_lora_weights(tmp_path / "theirs", unet_lora_layers=get_peft_model_state_dict(unet))
    ours, theirs = load_file(tmp_path / "ours" / FILE), load_file(tmp_path / "theirs" / FILE)
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_same_weights_are_the_same_bytes(document: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The same bytes from a policy and from a checkpoint's weights, in any order; the policy does not change."""
    values = {"rank": 2, "alpha": 6, "targetModules": ["to_v", "conv1", "to_q"]}
    run = TrainingSpec.model_validate(document(lora=values)["spec"])
    policy = models.load_policy(run)
    for parameter in policy.parameters:
        torch.nn.init.normal_(parameter)
    before = {name: value.detach().clone() for name, value in policy.adapter().items()}
    for number in range(4):
        models.save_adapter(policy, tmp_path / f"saved-{number}")
        models.export_adapter(dict(reversed(before.items())), run.lora, tmp_path / f"exported-{number}")
    assert len({file.read_bytes() for file in tmp_path.glob(f"*/{FILE}")}) == 1
    assert all(torch.equal(value, before[name]) for name, value in policy.adapter().items())
    with safe_open(tmp_path / "saved-0" / FILE, framework="pt") as opened:
        header = opened.metadata()
    assert header["format"] == "pt"
    facts = {"unet.lora_alpha": 2, "unet.r": 2, "unet.target_modules": ["conv1", "to_q", "to_v"]}
    assert json.loads(header["lora_adapter_metadata"]) == facts


def test_half_precision_stays(stock: Any, tmp_path: Path) -> None:
    lora = LoRA(rank=2, alpha=4, target_modules=["to_q", "conv1", "proj_in"])
    _, weights = trained(stock, lora)
    models.export_adapter({name: value.half() for name, value in weights.items()}, lora, tmp_path)
    saved = load_file(tmp_path / FILE)
    for name, value in weights.items():
        expected = value.detach().half() * (2 if ".lora_B." in name else 1)
        assert torch.equal(saved["unet." + name.replace(".default.", ".")], expected)


def test_a_full_disk_is_said(stock: Any, tmp_path: Path) -> None:
    lora = LoRA(rank=2, alpha=4)
    _, weights = trained(stock, lora)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"safetensors: not written, the disk or quota is full \(File too large\)"
        ):
            models.export_adapter(weights, lora, tmp_path / "lora")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
