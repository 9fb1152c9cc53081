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
