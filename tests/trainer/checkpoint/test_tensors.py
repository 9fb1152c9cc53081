"""Optimiser states as tensors and JSON, and back, exactly."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from tailorpo_trainer.checkpoint import Run, latest
from tailorpo_trainer.checkpoint.tensors import NAMES, flatten, pack, unflatten, unpack


class Trainee:
    """A tiny module, its optimiser and its schedule."""

    def __init__(self, tensor_lr: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        lr = torch.tensor(1e-2) if tensor_lr else 1e-2
        self.module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        parameter_groups: list[dict[str, Any]] = [
            {"params": self.module[0].parameters()},
            {"params": self.module[2].parameters(), "lr": 3e-3},
        ]
        self.optimizer = torch.optim.AdamW(parameter_groups, lr=lr, betas=(0.9, 0.995), **options)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def train(self, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(11, 5, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.module(inputs).square().mean().backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 0.1)
            self.optimizer.step()
            self.schedule.step()

    def bits(self) -> list[bytes]:
        return [tensor.numpy().tobytes() for tensor in self.module.state_dict().values()]


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}, {"tensor_lr": True}],
    ids=lambda options: "+".join(options) or "plain",
)
def test_training_goes_on_bit_for_bit(run: Run, options: dict[str, Any]) -> None:
    whole = Trainee(**options)
    whole.train(range(9))

    first = Trainee(**options)
    first.train(range(4))
    moments, rest = flatten({"adamw": first.optimizer.state_dict(), "schedule": first.schedule.state_dict()})
    groups = {"adapter": first.module.state_dict(), "optimizer": moments}
    run.begin(None).save(4, groups, {"optimizer": rest})
    first.train(range(4, 9))  # what was saved must not follow

    loaded = latest(run.store)
    assert loaded is not None
    second = Trainee(**options)
    second.train(range(2))
    second.module.load_state_dict(loaded.tensors("adapter"))
    state = unflatten(loaded.tensors("optimizer"), loaded.state["optimizer"])
    second.optimizer.load_state_dict(state["adamw"])
    second.schedule.load_state_dict(state["schedule"])
    second.train(range(loaded.step, 9))
    assert second.bits() == whole.bits() == first.bits()


def test_an_optimiser_state_comes_back_exactly(run: Run) -> None:
    trainee = Trainee()
    trainee.train(range(3))
    state = trainee.optimizer.state_dict()
    tensors, nested = flatten(state)
    assert "state.0.step" in tensors
    assert "state.3.exp_avg_sq" in tensors
    run.begin(None).save(3, {"optimizer": tensors}, {"optimizer": nested})
    loaded = latest(run.store)
    assert loaded is not None
    same(unflatten(loaded.tensors("optimizer"), loaded.state["optimizer"]), state)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        assert torch.equal(one, other)
    else:
        assert repr(one) == repr(other)


KEYS = st.text(st.characters(exclude_characters="."), max_size=5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers(0, 255), max_size=3).map(lambda values: torch.tensor(values, dtype=torch.uint8))
)
NESTED = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=3)
        | st.lists(below, max_size=3).map(tuple)
        | st.dictionaries(KEYS, below, max_size=3)
        | st.dictionaries(st.integers(), below, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(nested=NESTED)
def test_any_nested_state_survives_json(nested: Any) -> None:
    tensors, rest = flatten(nested)
    same(unflatten(tensors, json.loads(json.dumps(rest, allow_nan=False))), nested)


def test_what_cannot_be_kept_is_refused_by_its_path() -> None:
    with pytest.raises(TypeError, match=r"groups\.0\.hook: cannot keep a set"):
        flatten({"groups": [{"hook": {1}}]})
    with pytest.raises(ValueError, match=r"two tensors would be named 'a\.b'"):
        flatten({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}})


SHAPES = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=100, deadline=None)
@given(wanted=st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(st.sampled_from(list(NAMES)), SHAPES)))
def test_a_file_that_is_packed_in_one_copy_is_one_that_the_library_reads(wanted: Any) -> None:
    wanted.pop("__metadata__", None)
    live = {}
    for name, (dtype, shape) in wanted.items():
        drawn = torch.randint(0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8)
        live[name] = drawn.view(dtype).squeeze(-1)
    data = bytes(pack(live))
    found = unpack(data, "here")
    assert found.keys() == live.keys()
    for name, tensor in live.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        bits = [value.contiguous().view(-1).view(torch.uint8) for value in (found[name], tensor)]
        assert torch.equal(bits[0], bits[1])
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    assert begin % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():  # aligned, so that readers may map the file
        assert entry["data_offsets"][0] % live[name].element_size() == 0


def test_an_adapter_is_packed_into_the_bytes_that_the_library_writes() -> None:
    live = {f"{n}.lora_{side}.weight": torch.randn(3 + n, 4) for n in range(12) for side in "BA"}
    assert bytes(pack(live)) == save(live, {"format": "pt"})


def test_a_type_that_safetensors_does_not_know_is_named() -> None:
    with pytest.raises(TypeError, match=r"up: cannot keep torch\.complex128 in a checkpoint"):
        pack({"up": torch.zeros(2, dtype=torch.complex128)})
