"""`spec.lora.initial` in PEFT's own format: it is a LoRA of this model, or one sentence says what else it is."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailorpo_trainer import models
from tailorpo_trainer.errors import ConfigurationError, DataError, TailorPOError
from tailorpo_trainer.spec.job import Model, TrainingSpec

Make = Callable[..., dict[str, Any]]
LORA: dict[str, Any] = {"rank": 2, "alpha": 6}
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def unet(tiny_pipeline: Path) -> Any:
    return models.load_pipeline(Model(name=str(tiny_pipeline))).unet


def by_peft(unet: Any, folder: Path, config: Any) -> Any:
    """A copy of the denoiser with a strong adapter of PEFT, which is saved into the folder."""
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(copy.deepcopy(unet), config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(str(folder))
    return wrapped


def lora(modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"), **options: Any) -> Any:
    import peft

    return peft.LoraConfig(target_modules=list(modules), **{"r": 2, "lora_alpha": 6} | options)


def load(document: Make, initial: Path, **changes: Any) -> Any:
    return models.load_policy(
        TrainingSpec.model_validate(document(lora=LORA | changes | {"initial": str(initial)})["spec"])
    )


def refusal(document: Make, initial: Path, kind: type[TailorPOError] = ConfigurationError, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        load(document, initial, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(repr(str(initial)), "NAME").removeprefix("spec.lora.initial: ")


@torch.no_grad()
def drawn(unet: Any) -> Any:
    x = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
    return unet(x, torch.tensor(501), torch.linspace(-1, 1, 2 * 16 * 16).view(2, 16, 16), return_dict=False)[0]


@pytest.mark.parametrize("modules", [("to_q", "to_k", "to_v", "to_out.0"), ("conv1", "proj_in", "time_emb_proj")])
@pytest.mark.parametrize("alpha", [6, 1.5])
def test_a_folder_of_peft_begins_where_it_ended(
    document: Make, unet: Any, tmp_path: Path, modules: tuple[str, ...], alpha: float
) -> None:
    theirs = by_peft(unet, tmp_path, lora(modules))
    assert all(name.startswith("base_model.model.") for name in load_file(tmp_path / WEIGHTS))
    expected = drawn(theirs)
    assert float((expected - drawn(unet)).abs().max()) > 1e-2
    for initial in (tmp_path, tmp_path / WEIGHTS):
        ours = load(document, initial, alpha=alpha, targetModules=list(modules))
        torch.testing.assert_close(drawn(ours.unet), expected, rtol=1e-5, atol=1e-5)


def test_other_files_in_the_folder_and_another_name(document: Make, unet: Any, tmp_path: Path) -> None:
    theirs = by_peft(unet, tmp_path, lora())
    save_file({"a": torch.zeros(1)}, tmp_path / "optimizer.safetensors")
    torch.testing.assert_close(drawn(load(document, tmp_path).unet), drawn(theirs), rtol=1e-5, atol=1e-5)
    (tmp_path / WEIGHTS).rename(tmp_path / "mine.safetensors")
    ours = load(document, tmp_path / "mine.safetensors")
    torch.testing.assert_close(drawn(ours.unet), drawn(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [6, 1.5])
def test_a_file_that_a_denoiser_of_diffusers_saves_by_itself(
    document: Make, unet: Any, tmp_path: Path, alpha: float
) -> None:
    """`save_lora_adapter` of a model, not of a pipeline: its names have no `unet.` before them."""
    theirs = copy.deepcopy(unet)
    theirs.add_adapter(lora())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_lora_adapter(tmp_path)
    ours = load(document, tmp_path, alpha=alpha)
    torch.testing.assert_close(drawn(ours.unet), drawn(theirs), rtol=1e-5, atol=1e-5)


def change(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_rslora": True}, "NAME is no plain LoRA: it was made with use_rslora"),
        ({"rank_pattern": {"to_q": 4}}, "NAME is no plain LoRA: it was made with rank_pattern"),
        ({"alpha_pattern": {"to_q": 4}}, "NAME is no plain LoRA: it was made with alpha_pattern"),
        ({"lora_bias": True}, "NAME is no plain LoRA: it was made with lora_bias"),
        ({"use_dora": True}, "NAME is a DoRA, not a plain LoRA"),
        ({"peft_type": "ADALORA"}, "NAME is PEFT's ADALORA, and only a LoRA can be trained on"),
        ({"peft_type": None}, "NAME is PEFT's None, and only a LoRA can be trained on"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "NAME adds to a base model that pissa_niter_4 has changed, ",
        ),
        ({"init_lora_weights": "olora"}, "NAME adds to a base model that olora has changed, not to this one"),
    ],
)
def test_what_is_no_plain_lora(document: Make, unet: Any, tmp_path: Path, values: Any, message: str) -> None:
    by_peft(unet, tmp_path, lora())
    change(tmp_path, **values)
    assert refusal(document, tmp_path).startswith(message)


def test_real_adapters_of_other_kinds(document: Make, unet: Any, tmp_path: Path) -> None:
    import peft

    by_peft(unet, tmp_path / "dora", lora(use_dora=True))
    assert refusal(document, tmp_path / "dora") == "NAME is a DoRA, not a plain LoRA"
    modules = ["to_q", "to_v"]
    others = {
        "LOHA": peft.LoHaConfig(r=2, alpha=6, target_modules=modules),
        "LOKR": peft.LoKrConfig(r=2, alpha=6, target_modules=modules),
        "IA3": peft.IA3Config(target_modules=modules, feedforward_modules=[]),
        "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules=modules),
    }
    for kind, config in others.items():
        by_peft(unet, tmp_path / kind, config)
        expected = f"NAME is PEFT's {kind}, and only a LoRA can be trained on"
        assert refusal(document, tmp_path / kind) == expected
    by_peft(unet, tmp_path / "bias", lora(bias="lora_only"))
    assert refusal(document, tmp_path / "bias").startswith("NAME is no LoRA: it holds base_model.model.")


def test_another_rank_module_or_model(document: Make, unet: Any, tmp_path: Path) -> None:
    by_peft(unet, tmp_path, lora())
    assert refusal(document, tmp_path, rank=4) == "spec.lora.rank: is 4, but NAME has rank 2"
    text = refusal(document, tmp_path, targetModules=["to_q"])
    assert text.startswith("NAME has weights that this adapter has not, such as down_blocks.1.attentions.0.")
    weights = load_file(tmp_path / WEIGHTS)
    encoder = {name.replace("model.down_blocks", "model.text_model.layers"): value for name, value in weights.items()}
    save_file(encoder, tmp_path / WEIGHTS)
    assert refusal(document, tmp_path).startswith("NAME adapts the text encoder too")
    first = next(iter(weights))
    save_file(weights | {first: torch.tensor(1.0)}, tmp_path / WEIGHTS)
    assert refusal(document, tmp_path).startswith("NAME is a LoRA of another model: ")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            None,
            ConfigurationError,
            "NAME is in PEFT's format and has no adapter_config.json beside it, which holds",
        ),
        ("{", DataError, "NAME cannot be read: adapter_config.json: Expecting"),
        ("[" * 200_000, DataError, "NAME cannot be read: adapter_config.json: is nested too deeply"),
        ("[]", DataError, "NAME cannot be read: adapter_config.json is no object"),
        ('{"peft_type": "LORA"}', DataError, "NAME cannot be read: lora_alpha of adapter_config.json is None"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', DataError, "NAME cannot be read: lora_alpha of adapter_config"),
        ('{"peft_type": "LORA", "lora_alpha": "8"}', DataError, "NAME cannot be read: lora_alpha of adapter_config"),
    ],
)
def test_a_configuration_that_is_none(
    document: Make, unet: Any, tmp_path: Path, text: str | None, kind: type[TailorPOError], message: str
) -> None:
    by_peft(unet, tmp_path, lora())
    path = tmp_path / CONFIG
    path.unlink() if text is None else path.write_text(text)
    assert refusal(document, tmp_path, kind).startswith(message)
