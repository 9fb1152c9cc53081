"""One optimiser step at a time, on a model of three numbers whose gradient is known by hand."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tailorpo_trainer.checkpoint import CorruptError, Loaded
from tailorpo_trainer.checkpoint.tensors import pack
from tailorpo_trainer.diffusion.batch_sizes import BatchSizes
from tailorpo_trainer.distributed.signals import StopRequested
from tailorpo_trainer.document import parse
from tailorpo_trainer.errors import NotFiniteError
from tailorpo_trainer.methods import Loss
from tailorpo_trainer.methods.base import Stateless
from tailorpo_trainer.rollout.rows import Pairs
from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.training import loss_scaling
from tailorpo_trainer.training.loss_scaling import INITIAL_SCALE
from tailorpo_trainer.training.updater import Updater


class Linear(Stateless):
    """The loss of a row is weight . x, so that the gradient is the mean of the rows' x."""

    def loss(self, policy: Any, rows: Pairs, text: Tensor) -> Loss:
        assert len(text) == len(rows)
        logit = (policy.weight * rows.x).flatten(1).sum(1)
        return Loss(logit, {"logit": logit.detach()})


class Half(Linear):
    """As Linear, through fp16 and times a factor, which is what a large model's mean over many elements does."""

    def __init__(self, factor: float, dtype: torch.dtype = torch.float16) -> None:
        self.factor, self.dtype = factor, dtype

    def loss(self, policy: Any, rows: Pairs, text: Tensor) -> Loss:
        x = (rows.x if rows.prediction is None else rows.prediction).to(self.dtype)
        logit = (policy.weight.to(self.dtype) * x).float().flatten(1).sum(1) * self.factor
        return Loss(logit, {"logit": logit.detach()})


class Broken(Linear):
    """A finite loss whose gradient is NaN at every scale."""

    def loss(self, policy: Any, rows: Pairs, text: Tensor) -> Loss:
        logit = (policy.weight * 0 * rows.x).flatten(1).sum(1).abs().sqrt()
        return Loss(logit, {"logit": logit.detach()})


def model(at_once: int = 256, dtype: torch.dtype = torch.float32) -> Any:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    return SimpleNamespace(
        weight=weight,
        parameters=[weight],
        adapter=lambda: {"weight": weight},
        device=torch.device("cpu"),
        dtype=dtype,
        check_stop=None,
        batch_sizes=BatchSizes(training=at_once),
    )


def resolved(optimizer: dict[str, Any] | None = None, **training: Any) -> Spec:
    return parse(
        {
            "apiVersion": "tailorpo.dev/v1alpha1",
            "kind": "TailorPOJob",
            "metadata": {"name": "test"},
            "spec": {
                "prompts": {"builtin": "animals"},
                "rewards": [{"name": "colourfulness"}],
                "method": {"name": "tailorpo"},
                "optimizer": {"learningRate": 0.1} | (optimizer or {}),
                "training": {"iterations": 10} | training,
            },
        }
    ).spec


def updater(run: Spec) -> Updater:
    return Updater(model(run.training.micro_batch_size or 256), cast(Any, Linear()), run)


def in_fp16(method: Any, run: Spec | None = None) -> Updater:
    return Updater(model(dtype=torch.float16), method, run or resolved())


def rows(x: Tensor, weight: Tensor | None = None) -> Pairs:
    count = torch.arange(len(x))
    return Pairs(
        sample=count,
        step=torch.zeros_like(count),
        x=x,
        winner=x,
        loser=x,
        gap=torch.ones(len(x)),
        weight=torch.ones(len(x)) if weight is None else weight,
    )


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_an_update_does_not_depend_on_how_it_is_accumulated(size: int) -> None:
    x, weight = noise(8), torch.tensor([1.0, 0, 1, 1, 0.5, 1, 1, 0])
    whole, parts = updater(resolved()), updater(resolved(microBatchSize=size))
    one, other = (each.iterate(rows(x, weight), torch.zeros(8, 1, 1)) for each in (whole, parts))
    torch.testing.assert_close(whole.policy.adapter(), parts.policy.adapter())
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.gradient_norm == pytest.approx(float((x * weight[:, None]).mean(0).norm()), rel=1e-6)
    torch.testing.assert_close(one.facts, other.facts)


def test_rows_of_weight_zero_change_nothing() -> None:
    x = noise(4)
    one, other = updater(resolved()), updater(resolved())
    one.iterate(rows(x, torch.tensor([1.0, 1, 0, 0])), torch.zeros(4, 1, 1))
    other.iterate(rows(torch.cat([x[:2], 100 * noise(2, 1)]), torch.tensor([1.0, 1, 0, 0])), torch.zeros(4, 1, 1))
    torch.testing.assert_close(one.policy.adapter(), other.policy.adapter())


def test_the_average_is_the_one_computed_by_hand() -> None:
    decay, each = 0.75, updater(resolved({"emaDecay": 0.75}))
    expected = torch.tensor([1.0, -2.0, 3.0])
    for iteration in range(5):
        each.iterate(rows(noise(4, iteration)), torch.zeros(4, 1, 1))
        expected = decay * expected + (1 - decay) * each.policy.adapter()["weight"].detach()
    assert each.average is not None
    torch.testing.assert_close(each.average["weight"], expected)
    live = each.policy.adapter()["weight"].detach().clone()
    with each.averaged():
        torch.testing.assert_close(each.policy.adapter()["weight"].detach(), expected)
    assert torch.equal(each.policy.adapter()["weight"], live)


def test_a_failure_under_the_average_brings_the_weights_back() -> None:
    each = updater(resolved({"emaDecay": 0.5}))
    each.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    live = each.policy.adapter()["weight"].detach().clone()
    with pytest.raises(StopRequested), each.averaged():
        raise StopRequested
    assert torch.equal(each.policy.adapter()["weight"], live)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_is_a_function_of_the_update(schedule: str, warmup: int) -> None:
    run = resolved({"schedule": schedule, "warmupUpdates": warmup}, iterations=6, updatesPerIteration=2)
    each = updater(run)
    rates = [each.learning_rate(update) for update in range(12)]
    for update, rate in enumerate(rates):
        done = (update - warmup) / (12 - warmup)
        after = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]
        assert rate == pytest.approx(0.1 * ((update + 1) / warmup if update < warmup else after), rel=1e-12)
    assert rates[warmup] == 0.1
    assert min(rates) > 0
    facts = each.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    assert facts.learning_rate == rates[1]
    assert each.optimizer.param_groups[0]["lr"] == rates[1]


def test_a_gradient_is_scaled_down_to_its_limit_and_reported_as_it_was() -> None:
    """AdamW's first step does not depend on the gradient's length, so its moments are compared."""
    x = 50 * noise(4)
    each = updater(resolved({"maxGradNorm": 0.5}))
    facts = each.iterate(rows(x), torch.zeros(4, 1, 1))
    gradient = x.mean(0)
    assert facts.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-6)
    (state,) = each.optimizer.state.values()
    torch.testing.assert_close(state["exp_avg"], 0.1 * 0.5 * gradient / gradient.norm(), rtol=1e-4, atol=1e-7)


def test_each_of_several_updates_takes_its_share_and_none_twice() -> None:
    each = updater(resolved(updatesPerIteration=2))
    facts = each.iterate(replace(rows(noise(6)), gap=torch.arange(6.0)), torch.zeros(6, 1, 1))
    assert each.updates == 2
    assert facts.gap is not None
    assert facts.gap.tolist() == [0, 2, 4, 1, 3, 5]
    assert len(facts.facts["logit"]) == len(facts.step) == len(facts.weight) == 6


def test_who_stops_before_the_first_step_has_changed_nothing() -> None:
    each = updater(resolved({"emaDecay": 0.5}, microBatchSize=1))
    before = [value.clone() for group in each.state()[0].values() for value in group.values()]
    calls = iter(range(10))

    def beat() -> None:
        if next(calls) == 2:
            each.world.stop.requested = "SIGTERM"

    each.world.beat = beat
    with pytest.raises(StopRequested):
        each.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    after = [value for group in each.state()[0].values() for value in group.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert each.updates == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights(bad: float) -> None:
    each = updater(resolved({"emaDecay": 0.5}))
    each.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    before, updates = each.policy.adapter()["weight"].detach().clone(), each.updates
    spoilt = noise(4)
    spoilt[2, 1] = bad
    with pytest.raises(NotFiniteError, match=r"lower spec.optimizer.learningRate"):
        each.iterate(rows(spoilt), torch.zeros(4, 1, 1))
    assert torch.equal(each.policy.adapter()["weight"], before)
    assert each.updates == updates
    assert each.policy.parameters[0].grad is None


@pytest.mark.parametrize("factor", [1e-10, 1e-4, 1e4, 1e6])
def test_in_fp16_no_gradient_is_lost_however_small_or_large(factor: float) -> None:
    x = noise(8)
    each = in_fp16(Half(factor))
    facts = each.iterate(rows(x), torch.zeros(8, 1, 1))
    assert facts.gradient_norm == pytest.approx(factor * float(x.mean(0).norm()), rel=5e-3)
    assert facts.gradient_zeros == 0
    assert each.updates == 1
    assert (each.scaler.factor < INITIAL_SCALE) is (factor > 1)
    exact = updater(resolved())
    exact.method = cast(Any, Half(factor, torch.float32))
    exact.iterate(rows(x), torch.zeros(8, 1, 1))
    torch.testing.assert_close(each.policy.parameters[0], exact.policy.parameters[0], rtol=1e-3, atol=0)


def test_without_a_scale_a_small_gradient_is_gone_and_that_is_said() -> None:
    each = updater(resolved())
    each.method = cast(Any, Half(1e-8))
    facts = each.iterate(rows(noise(8)), torch.zeros(8, 1, 1))
    assert facts.gradient_norm == 0
    assert facts.gradient_zeros == 1


def test_what_is_made_again_does_not_use_a_graph_that_is_gone() -> None:
    each = in_fp16(Half(1e4))
    kept = (noise(4) * torch.ones(1, 3, requires_grad=True)).contiguous()
    without = replace(rows(noise(4)), prediction=None)
    facts = each.iterate(replace(without, prediction=kept), torch.zeros(4, 1, 1))
    assert facts.gradient_norm == pytest.approx(1e4 * float(noise(4).mean(0).norm()), rel=5e-3)


@pytest.mark.parametrize(("method", "bad"), [(Broken(), 1.0), (Half(1.0), float("nan"))])
def test_in_fp16_too_what_is_not_finite_never_reaches_the_weights(method: Any, bad: float) -> None:
    each = in_fp16(method)
    before, scale = each.policy.parameters[0].detach().clone(), each.scaler.state()
    with pytest.raises(NotFiniteError, match=r"precision fp32"):
        each.iterate(rows(noise(4) * bad), torch.zeros(4, 1, 1))
    assert torch.equal(each.policy.parameters[0], before)
    assert each.scaler.state() == scale
    assert each.updates == 0


def test_the_scale_grows_and_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaling, "GROWTH_INTERVAL", 2)
    each = in_fp16(Half(1e-4))
    for _ in range(3):
        each.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    assert each.scaler.factor == 2 * INITIAL_SCALE
    groups, state = each.state()
    other = in_fp16(Half(1e-4))
    other.load(saved(groups, state | {"totals": {}}))
    assert other.scaler.state() == each.scaler.state()
    for one in (each, other):
        one.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    assert other.scaler.state() == each.scaler.state()
    assert other.scaler.factor == 4 * INITIAL_SCALE
    assert torch.equal(other.policy.parameters[0], each.policy.parameters[0])


def test_a_checkpoint_without_a_scale_begins_with_the_first_one() -> None:
    groups, state = in_fp16(Half(1.0)).state()
    del state["scaler"]
    other = in_fp16(Half(1.0))
    other.load(saved(groups, state | {"totals": {}}))
    assert other.scaler.factor == INITIAL_SCALE


@pytest.mark.parametrize("scaler", [[1], {"scale": 1.0}, {"scale": -1.0}, {"scale": "1"}, {"scale": 0}])
def test_a_scale_that_is_none(scaler: Any) -> None:
    groups, state = in_fp16(Half(1.0)).state()
    if isinstance(scaler, dict) and scaler != {"scale": 1.0}:
        scaler = state["scaler"] | scaler
    with pytest.raises(CorruptError, match=r"its state.json has no scaler's state"):
        in_fp16(Half(1.0)).load(saved(groups, state | {"totals": {}, "scaler": scaler}))


def saved(groups: dict[str, dict[str, Tensor]], state: Any) -> Loaded:
    """A checkpoint with these contents, as it would be read."""
    objects = {f"{name}.safetensors": bytes(pack(tensors)) for name, tensors in groups.items()}
    return Loaded(cast(Any, None), "checkpoint/", json.loads(json.dumps(state)), objects)


def trained() -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The state after an update, with a moving average."""
    own = updater(resolved({"emaDecay": 0.9}))
    own.iterate(rows(noise(4)), torch.zeros(4, 1, 1))
    groups, state = own.state()
    return groups, state | {"totals": {"images": 4.0}}


def test_a_state_comes_back_as_it_was() -> None:
    groups, state = trained()
    other = updater(resolved({"emaDecay": 0.9}))
    other.load(saved(groups, state))
    assert other.updates == 1
    assert torch.equal(other.policy.adapter()["weight"], groups["adapter"]["weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups, state: groups.update(adapter={}), "adapter: holds other weights than this run's: weight"),
        (lambda groups, state: groups.pop("optimizer"), "has no optimizer.safetensors"),
        (lambda groups, state: groups.pop("ema"), "has no ema.safetensors"),
        (lambda groups, state: groups["adapter"].update(more=torch.zeros(1)), "holds other weights .*: more"),
        (lambda groups, state: groups["ema"].update(weight=torch.zeros(4)), r"weight is torch.float32 \[4\], not"),
        (lambda groups, state: groups["adapter"].update(weight=torch.zeros(3).int()), "weight is torch.int32"),
        (lambda groups, state: groups.update(optimizer={}), "its optimizer's state does not fit: KeyError"),
        (lambda groups, state: state.pop("optimizer"), "its optimizer's state does not fit: KeyError"),
        (lambda groups, state: state.update(optimizer=[1]), "its optimizer's state does not fit: "),
        (lambda groups, state: state.update(optimizer={"state": {}, "param_groups": []}), "does not fit: ValueError"),
        (
            lambda groups, state: groups.update(method={"counts": torch.ones(1)}),
            "method: does not fit method 'tailorpo'",
        ),
        (lambda groups, state: state.pop("updates"), "no number of updates, or no totals"),
        (lambda groups, state: state.update(updates=-1), "no number of updates, or no totals"),
        (lambda groups, state: state.update(totals=[1]), "no number of updates, or no totals"),
        (lambda groups, state: state.update(totals={"images": "many"}), "no number of updates, or no totals"),
    ],
)
def test_a_checkpoint_of_something_else(change: Any, message: str) -> None:
    groups, state = trained()
    change(groups, state)
    with pytest.raises(CorruptError, match=message):
        updater(resolved({"emaDecay": 0.9})).load(saved(groups, state))


def test_moments_of_another_shape() -> None:
    groups, state = trained()
    name = next(name for name, value in groups["optimizer"].items() if value.dim())
    groups["optimizer"][name] = torch.zeros(5)
    with pytest.raises(CorruptError, match="a moment has another shape than its weight"):
        updater(resolved({"emaDecay": 0.9})).load(saved(groups, state))
