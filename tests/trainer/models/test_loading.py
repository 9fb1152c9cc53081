"""How a policy comes to its device: the adapter bit for bit, in a precision that the device computes in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import models
from tailorpo_trainer.models import loading
from tailorpo_trainer.spec.job import TrainingSpec

Make = Callable[..., dict[str, Any]]


def training(document: Make, **lora: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(document(lora={"rank": 2, "alpha": 2} | lora)["spec"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_is_not_rounded_where_the_denoiser_is(
    document: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """As on an accelerator, whose frozen weights are in the lower precision; a fresh adapter and a given one."""
    policy = models.load_policy(training(document))
    fresh = {name: value.detach().clone() for name, value in policy.adapter().items()}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in policy.parameters:
            torch.nn.init.normal_(parameter, std=1e-5)  # mostly below the smallest number of fp16 without loss
    models.save_adapter(policy, tmp_path)
    given = {name: value.detach().clone() for name, value in policy.adapter().items()}
    whole = loading.place
    monkeypatch.setattr(loading, "place", lambda unet, device, _: whole(unet, device, dtype))
    for expected, lora in ((fresh, {}), (given, {"initial": str(tmp_path)})):
        again = models.load_policy(training(document, **lora))
        assert {value.dtype for value in again.unet.parameters() if not value.requires_grad} == {dtype}
        assert again.adapter().keys() == expected.keys()
        for name, value in again.adapter().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),  # torch.cuda.is_bf16_supported() says yes, since it can be emulated
        ((7, 0), torch.float16),
        ((6, 1), torch.float32),  # computes in fp16 at 1/64 of the speed
    ],
)
def test_auto_is_a_precision_that_the_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert models.pick_dtype("auto", torch.device("cuda", 0)) == expected
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        assert models.pick_dtype(precision, torch.device("cuda", 0)) == dtype


def test_auto_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.pick_dtype("auto", torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert models.pick_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    for emulated in (False, True):
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda including_emulation, answer=emulated: answer)
        found = models.pick_dtype("auto", torch.device("xpu", 0))
        assert found == (torch.bfloat16 if emulated else torch.float16)
