"""The rollout, rows and loss of each method, on a random tiny model."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tailorpo_trainer import methods, models, rewards
from tailorpo_trainer.diffusion.batch_sizes import batch_sizes
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.document import parse
from tailorpo_trainer.methods.tailorpo_g import TailorPOG
from tailorpo_trainer.prompts import number
from tailorpo_trainer.rollout.rows import Pairs, Transitions
from tailorpo_trainer.rollout.scoring import Scorer
from tailorpo_trainer.rollout.trajectories import BranchPoint, sample_branched_trajectories, sample_trajectories
from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.training import loss_scaling
from tailorpo_trainer.training.updater import Updater

ALL = ["tailorpo", "tailorpo-g", "spo", "d3po", "ddpo"]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def resolved(document: Make) -> Callable[..., Spec]:
    return lambda **parts: parse(document(**parts)).spec


def rollout_context(
    run: Spec, policy: Policy, prompts: tuple[str, ...] = ("a cat", "a dog", "a bee"), iteration: int = 0
) -> methods.RolloutContext:
    steps = run.sampling.trained_steps
    assert steps.count is not None
    assert steps.choose is not None
    return methods.RolloutContext(
        policy=policy,
        text=policy.embed(prompts),
        prompts=torch.arange(len(prompts)),
        noise=Noise((0, Purpose.TRAINING, iteration), range(len(prompts)), policy.latent_shape),
        score=Scorer(policy, rewards.load(run.rewards, "cpu"), prompts),
        trained=choose_steps(policy.sampler, steps.count, steps.choose),
    )


@contextmanager
def nudged(policy: Policy, size: float = 0.05) -> Iterator[None]:
    """Inside, the adapter differs from its initial state, so that both its matrices matter."""
    before = {name: value.detach().clone() for name, value in policy.adapter().items()}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for value in policy.adapter().values():
            value.add_(size * torch.randn(value.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in policy.adapter().items():
                value.copy_(before[name])


def test_a_fresh_policy_and_the_reference_are_the_untouched_base(
    resolved: Callable[..., Spec], tiny_pipeline: Path
) -> None:
    from diffusers import UNet2DConditionModel

    run = resolved()
    policy = models.load_policy(run)
    base = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    x, text = (
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        policy.embed(["a cat", "a dog", "a bee"]),
    )
    with torch.no_grad():
        negative = policy.embed([""]).expand_as(text)
        t = policy.sampler.timesteps[1]
        unconditional, conditional = base(torch.cat([x, x]), t, torch.cat([negative, text])).sample.chunk(2)
        expected = unconditional + 3.0 * (conditional - unconditional)
        assert torch.equal(policy.predict(x, 1, text), expected)
        with nudged(policy):
            assert not torch.allclose(policy.predict(x, 1, text), expected, atol=1e-3)
            with policy.reference():
                assert torch.equal(policy.predict(x, 1, text), expected)


@pytest.mark.parametrize("name", ALL)
def test_before_the_first_update_policy_and_reference_are_one(resolved: Callable[..., Spec], name: str) -> None:
    run = resolved(method={"name": name} | ({"threshold": 0.0} if name == "spo" else {}))
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    rows = method.rows(context, method.rollout(context))
    found = method.loss(policy, rows, context.text[rows.sample])
    assert float(found.metrics["logit"].abs().max()) < 1e-5
    if name != "ddpo":
        torch.testing.assert_close(found.losses, torch.full_like(found.losses, math.log(2)))
    else:
        torch.testing.assert_close(found.losses, -rows.advantage, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ALL)
def test_an_update_prefers_what_was_preferred(resolved: Callable[..., Spec], name: str) -> None:
    run = resolved(
        method={"name": name} | ({"threshold": 0.0} if name == "spo" else {}),
        optimizer={"learningRate": 1e-3},
        training={"iterations": 9, "promptsPerIteration": 3},
    )
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    rows = method.rows(context, method.rollout(context))
    updater = Updater(policy, method, run)
    first = updater.iterate(rows, context.text)
    second = updater.iterate(rows, context.text)
    assert first.gradient_norm > 0
    assert second.loss < first.loss


@pytest.mark.parametrize("name", ["tailorpo", "spo"])
def test_candidates_share_their_latent_and_their_mean(resolved: Callable[..., Spec], name: str) -> None:
    run = resolved(method={"name": name})
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    for drawn in method.rollout(context):
        sigma = float(policy.sampler.sigma[drawn.step])
        noises = [context.noise.step(drawn.step, k) for k in range(drawn.candidates.shape[1])]
        means = [drawn.candidates[:, k] - sigma * noise for k, noise in enumerate(noises)]
        for mean in means[1:]:
            torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-5)
        assert float((noises[0] - noises[1]).abs().max()) > 1


def test_the_clean_estimate_at_the_shared_latent_cannot_rank(resolved: Callable[..., Spec]) -> None:
    """x0hat predicted from x is the same for both candidates; predicted from each candidate it differs."""
    run = resolved()
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    for drawn in methods.build(run.method).rollout(context):
        with torch.no_grad():
            from_x = policy.sampler.clean(drawn.step, drawn.x, policy.predict(drawn.x, drawn.step, context.text))
        rewards_of_x = context.score(from_x.repeat_interleave(2, dim=0), drawn.step).view(-1, 2)
        assert torch.equal(rewards_of_x[:, 0], rewards_of_x[:, 1])
        assert (drawn.rewards[:, 0] != drawn.rewards[:, 1]).all()


@pytest.mark.parametrize("continue_from", ["winner", "random"])
def test_the_trajectory_goes_on_from_the_chosen_candidate(resolved: Callable[..., Spec], continue_from: str) -> None:
    run = resolved(
        method={"name": "tailorpo", "continueFrom": continue_from},
        sampling={"steps": 4, "trainedSteps": {"count": 4}, "guidanceScale": 1.0},
    )
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    drawn = methods.build(run.method).rollout(context)
    rows = torch.arange(3)
    for now, after in pairwise(drawn):
        chosen = now.winner if continue_from == "winner" else context.noise.choice(now.step, 2)
        assert torch.equal(after.x, now.candidates[rows, chosen])


def test_the_prediction_made_to_score_is_the_next_step_s(resolved: Callable[..., Spec]) -> None:
    """Reusing the prediction changes nothing: means recomputed from the stored latents are equal."""
    run = resolved(sampling={"steps": 6, "trainedSteps": {"count": 3}, "guidanceScale": 2.0})
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    for drawn in methods.build(run.method).rollout(context):
        with torch.no_grad():
            mean = policy.sampler.mean(drawn.step, drawn.x, policy.predict(drawn.x, drawn.step, context.text))
        expected = mean + policy.sampler.noise_level(drawn.step, mean) * context.noise.step(drawn.step, 0)
        torch.testing.assert_close(drawn.candidates[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "choose", "saved"),
    [
        ("tailorpo", "spread", 3),
        ("tailorpo-g", "spread", 3),
        ("spo", "spread", 3),
        ("tailorpo", "early", 1),  # the other trained steps follow a trained step
        ("tailorpo-g", "late", 3),  # the guided winner needs a prediction of its own
    ],
)
def test_keeping_the_rollout_s_graph_changes_work_and_nothing_else(
    resolved: Callable[..., Spec], name: str, choose: str, saved: int
) -> None:
    """The update reuses the rollout's prediction at x: the gradient is equal, with 2 rows less for each such step."""
    run = resolved(
        method={"name": name} | ({"threshold": 0.0} if name == "spo" else {}),
        sampling={"steps": 12, "trainedSteps": {"count": 3, "choose": choose}, "guidanceScale": 3.0},
    )
    gradients, forwards = [], []
    for keep in (False, True):
        policy, method = models.load_policy(run), methods.build(run.method)
        with nudged(policy):
            context = replace(rollout_context(run, policy), keep_graph=keep)
            rows = method.rows(context, method.rollout(context))
            found = method.loss(policy, rows, context.text[rows.sample])
            found.losses.sum().backward()
        gradients.append({name: value.grad for name, value in policy.adapter().items()})
        forwards.append(policy.counters.forwards)
    assert forwards[0] - forwards[1] == 2 * 3 * saved
    for part, gradient in gradients[0].items():
        assert gradient is not None
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradients[1][part], gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("trained", "updates", "rows", "expected"),
    [([1, 5, 9], 1, 9, True), ([1, 5, 9], 1, 8, False), ([1, 5, 9], 2, 9, False), ([4, 5, 9], 1, 9, True)],
)
def test_the_graph_is_kept_where_that_is_exact_and_fits(
    resolved: Callable[..., Spec], trained: list[int], updates: int, rows: int, expected: bool
) -> None:
    training = {"iterations": 1, "promptsPerIteration": 3, "updatesPerIteration": updates, "microBatchSize": rows}
    run = resolved(training=training)
    assert methods.can_keep_graph(run.training, batch_sizes(run.training, 256), trained, 3) is expected


@pytest.mark.parametrize("scale", [loss_scaling.INITIAL_SCALE, 2.0**60])
@pytest.mark.parametrize("name", ALL)
def test_in_fp16_a_small_loss_has_its_whole_gradient(
    resolved: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch, name: str, scale: float
) -> None:
    """As small as a large model's, whose losses are means over many more elements. A scale that is far too large is
    found out by an update which uses the rollout's graph, and is then made again without it."""
    monkeypatch.setattr(loss_scaling, "INITIAL_SCALE", scale)
    found: list[Tensor] = []
    drawn: Any = None
    for precision in ("fp32", "fp16"):
        run = resolved(
            method={"name": name} | ({"threshold": 0.0} if name == "spo" else {}),
            training={"iterations": 1, "promptsPerIteration": 3, "precision": precision},
        )
        policy, method = models.load_policy(run), methods.build(run.method)
        context = rollout_context(run, policy)
        drawn = drawn if drawn is not None else method.rows(context, method.rollout(context))
        rows = drawn
        if isinstance(rows, Pairs) and rows.x_loser is None:
            rows = replace(rows, prediction=policy.predict(rows.x, rows.step, context.text[rows.sample]))
        monkeypatch.setattr(method, "loss", smaller(method.loss))
        updater = Updater(policy, method, run)

        def keep(*_: Any, policy: Policy = policy) -> None:
            values = [value.grad for key, value in policy.adapter().items() if "lora_B" in key]
            found.append(torch.cat([value.double().flatten() for value in values if value is not None]))

        updater.optimizer.register_step_pre_hook(keep)
        updater.iterate(rows, context.text)
    exact, half = found
    assert float((half - exact).norm()) < 0.02 * float(exact.norm())


def smaller(loss: Any) -> Any:
    def scaled(*arguments: Any) -> methods.Loss:
        found: methods.Loss = loss(*arguments)
        return replace(found, losses=found.losses * 1e-6)

    return scaled


@pytest.mark.parametrize("gradient", ["full", "detached"])
def test_a_small_reward_guides_in_fp16_as_in_fp32(resolved: Callable[..., Spec], gradient: str) -> None:
    """The gradient of a reward of small numbers is below fp16's smallest number, and only its direction matters."""
    pushes = []
    for precision, weight in (("fp32", 1.0), ("fp16", 1e-7)):
        run = resolved(
            method={"name": "tailorpo-g", "rewardGuidance": {"gradient": gradient}},
            training={"iterations": 1, "promptsPerIteration": 3, "precision": precision},
            rewards=[{"name": "colourfulness", "weight": weight}],
        )
        policy, method = models.load_policy(run), methods.build(run.method)
        assert isinstance(method, TailorPOG)
        context = rollout_context(run, policy)
        x = context.noise.initial()
        prediction = policy.predict(x, 1, context.text).detach()
        pushes.append(method.displacement(context, 0, x, prediction).flatten(1))
    exact, half = pushes
    assert float(torch.nn.functional.cosine_similarity(half, exact).min()) > 0.99
    torch.testing.assert_close(half.norm(dim=1), exact.norm(dim=1), rtol=1e-3, atol=0)


def test_ties_weigh_nothing_and_are_not_dropped(resolved: Callable[..., Spec]) -> None:
    run = resolved()
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)

    def indifferent(latents: Tensor, step: int) -> Tensor:
        return torch.zeros(len(latents))

    drawn = sample_branched_trajectories(policy, context.text, context.noise, indifferent, context.trained, 2, "winner")
    rows = method.rows(context, drawn)
    assert len(rows) == 3 * len(context.trained)
    assert float(rows.weight.abs().max()) == 0
    before = {name: value.detach().clone() for name, value in policy.adapter().items()}
    no_decay = run.model_copy(update={"optimizer": run.optimizer.model_copy(update={"weight_decay": 0.0})})
    facts = Updater(policy, method, no_decay).iterate(rows, context.text)
    assert facts.loss == 0
    assert all(torch.equal(value, before[name]) for name, value in policy.adapter().items())


def test_spo_keeps_pairs_that_are_certain_enough(resolved: Callable[..., Spec]) -> None:
    """Certainty as in the official code: softmax over the scores of the best and the worst, and their difference."""
    everything = resolved(method={"name": "spo", "threshold": 0.0})
    policy = models.load_policy(everything)
    context = rollout_context(everything, policy)
    drawn = methods.build(everything.method).rollout(context)
    # So that some pairs are certain and some are not, whatever the random model paints.
    gap = torch.cat([each.rewards.amax(1) - each.rewards.amin(1) for each in drawn]).mean()
    drawn = [replace(each, rewards=each.rewards / gap * 0.62) for each in drawn]
    best = torch.cat([torch.stack([b.rewards.max(1).values, b.rewards.min(1).values]) for b in drawn], dim=1)
    probabilities = best.softmax(dim=0)
    certainty = probabilities[0] - probabilities[1]
    for threshold in (0.0, 0.3, float(certainty.median())):
        rows = methods.build(resolved(method={"name": "spo", "threshold": threshold}).method).rows(context, drawn)
        assert isinstance(rows, Pairs)
        assert torch.equal(rows.gap, best[0] - best[1])
        clear = (certainty - threshold).abs() > 1e-6  # the median itself is rounded in two ways
        assert torch.equal(rows.weight[clear], (certainty > threshold).float()[clear])
        assert 0 < float(rows.weight.sum()) <= len(rows)


@pytest.mark.parametrize(("gap", "kept"), [(0.0, 0), (0.3, 0), (0.61, 0), (0.63, 1), (40.0, 1)])
def test_spo_s_default_is_the_official_one(resolved: Callable[..., Spec], gap: float, kept: int) -> None:
    rewards = torch.tensor([[0.1 * gap, gap, 0.0, 0.5 * gap]])
    latents = torch.zeros(1, 4, 1, 1, 1)
    best, worst = rewards.argmax(1), rewards.argmin(1)
    branch = BranchPoint(0, latents[:, 0], latents, rewards, best, worst, latents[:, 0])
    rows = methods.build(resolved(method={"name": "spo"}).method).rows(cast(Any, None), [branch])
    assert rows.weight.tolist() == [kept]


def test_ddpo_s_advantages_are_the_same_in_any_number_of_processes(resolved: Callable[..., Spec]) -> None:
    """Each process has some of the samples, and the statistics are those of all processes' samples."""
    run = resolved(method={"name": "ddpo"})
    policy, texts = models.load_policy(run), ("a cat", "a dog", "a cat", "a bee")
    context = replace(rollout_context(run, policy, texts), prompts=torch.tensor([number(text) for text in texts]))
    whole = methods.build(run.method)
    drawn = whole.rollout(context)
    expected = whole.rows(context, drawn)
    whole.end_iteration()
    assert isinstance(expected, Transitions)
    assert (expected.advantage != 0).all()

    def gather(rows: Tensor) -> Tensor:
        return context.prompts if rows.dtype == torch.int64 else drawn.rewards

    for part in (slice(0, 1), slice(1, 4)):
        transitions = [
            replace(each, x=each.x[part], y=each.y[part], prediction=each.prediction[part])
            for each in drawn.transitions
        ]
        own = replace(drawn, rewards=drawn.rewards[part], transitions=transitions)
        method = methods.build(run.method)
        found = method.rows(replace(context.select(part), gather=gather), own)
        method.end_iteration()
        assert isinstance(found, Transitions)
        assert torch.equal(found.advantage, expected.advantage.view(-1, 4)[:, part].flatten())
        for name, value in whole.state().items():
            assert torch.equal(method.state()[name], value)


def test_d3po_s_sides_share_only_the_first_noise(resolved: Callable[..., Spec]) -> None:
    run = resolved(method={"name": "d3po"})
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    rows = method.rows(context, method.rollout(context))
    assert isinstance(rows, Pairs)
    assert rows.x_loser is not None
    first = rows.step == 0
    assert torch.equal(rows.x[first], rows.x_loser[first])
    assert not torch.equal(rows.x[~first], rows.x_loser[~first])


def test_d3po_labels_every_step_by_the_final_picture(resolved: Callable[..., Spec]) -> None:
    run = resolved(method={"name": "d3po"})
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    drawn = method.rollout(context)
    rows = method.rows(context, drawn)
    assert isinstance(rows, Pairs)
    first_wins = drawn.rewards[:, 0] > drawn.rewards[:, 1]
    assert len(drawn.first) == 2
    for first, second in zip(drawn.first, drawn.second, strict=True):
        winner, loser = rows.winner[rows.step == first.step], rows.loser[rows.step == first.step]
        for n, wins in enumerate(first_wins):
            assert torch.equal(winner[n], (first if wins else second).y[n])
            assert torch.equal(loser[n], (second if wins else first).y[n])


def test_a_pushed_winner_has_a_higher_reward(resolved: Callable[..., Spec]) -> None:
    """More than 95 % of small displacements raise the reward of the picture that the winner leads to."""
    run = resolved(
        method={"name": "tailorpo-g", "rewardGuidance": {"fraction": 0.02}},
        sampling={"steps": 6, "trainedSteps": {"count": 5, "choose": "early"}, "guidanceScale": 2.0},
    )
    policy = models.load_policy(run)
    method, raised = methods.build(run.method), []
    for iteration in range(8):
        context = rollout_context(run, policy, ("a cat", "a dog", "a bee", "a fox"), iteration)
        for drawn in method.rollout(context):
            winner = drawn.candidates[torch.arange(4), drawn.winner]
            before, after = (reward_after(policy, context, drawn.step, y) for y in (winner, drawn.target))
            raised.append((after > before).float())
            length = (drawn.target - winner).flatten(1).norm(dim=1)
            longest = 0.02 * float(policy.sampler.sigma[drawn.step]) * 256**0.5
            torch.testing.assert_close(length, torch.full_like(length, longest), rtol=1e-3, atol=0)
    assert float(torch.cat(raised).mean()) > 0.95


def reward_after(policy: Policy, context: methods.RolloutContext, step: int, y: Tensor) -> Tensor:
    with torch.no_grad():
        clean = policy.sampler.clean(step + 1, y, policy.predict(y, step + 1, context.text))
    return context.score(clean, step)


def test_a_winner_above_the_target_is_not_pushed(resolved: Callable[..., Spec]) -> None:
    run = resolved(method={"name": "tailorpo-g", "rewardGuidance": {"target": -1e6, "strength": 1.0}})
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    for drawn in methods.build(run.method).rollout(context):
        assert torch.equal(drawn.target, drawn.candidates[torch.arange(3), drawn.winner])


def test_the_push_is_the_gradient_of_the_squared_distance_to_the_target(resolved: Callable[..., Spec]) -> None:
    run = resolved(
        method={"name": "tailorpo-g", "rewardGuidance": {"target": 200.0, "strength": 1e-6, "fraction": 1.0}},
        sampling={"steps": 4, "trainedSteps": {"count": 1, "choose": "early"}, "guidanceScale": 1.0},
    )
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    (drawn,) = methods.build(run.method).rollout(context)
    y = drawn.candidates[torch.arange(3), drawn.winner].clone().requires_grad_()
    clean = policy.sampler.clean(1, y, policy.predict(y, 1, context.text))
    ((200.0 - context.score.differentiable(clean, 0)) ** 2).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(drawn.target - y.detach(), -1e-6 * y.grad, rtol=1e-2, atol=1e-6)


def test_a_rollout_ends_after_the_last_trained_step(resolved: Callable[..., Spec]) -> None:
    run = resolved(sampling={"steps": 8, "trainedSteps": {"count": 2, "choose": "early"}, "guidanceScale": 3.0})
    policy = models.load_policy(run)
    context = rollout_context(run, policy)
    methods.build(run.method).rollout(context)
    # Latents x_0 and x_1, and the candidates of both steps, of which one is the next latent; 3 samples, with guidance.
    assert policy.counters.forwards == 2 * 3 * (1 + 2 + 2)


@pytest.mark.parametrize(("keep", "forwards"), [(False, 70), (True, 60)])
def test_work_of_one_trajectory_stays_within_the_best_known(
    resolved: Callable[..., Spec], keep: bool, forwards: int
) -> None:
    """T = 20, 5 trained steps, guidance: at most 70 denoiser forwards, of which 10 record a gradient."""
    run = resolved(sampling={"steps": 20, "trainedSteps": {"count": 5}, "guidanceScale": 5.0})
    policy, method = models.load_policy(run), methods.build(run.method)
    context = replace(rollout_context(run, policy, ("a cat",)), keep_graph=keep)
    rows = method.rows(context, method.rollout(context))
    Updater(policy, method, run).iterate(rows, context.text)
    assert policy.counters.forwards <= forwards
    assert policy.counters.forwards_with_gradient == 10


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_does_not_depend_on_the_batch(resolved: Callable[..., Spec], name: str) -> None:
    from tailorpo_trainer.rollout.rows import concatenate

    run = resolved(method={"name": name})
    policy, method = models.load_policy(run), methods.build(run.method)
    context = rollout_context(run, policy)
    whole = method.rows(context, method.rollout(context))
    parts = method.rows(
        context, concatenate([method.rollout(context.select(slice(0, 1))), method.rollout(context.select(slice(1, 3)))])
    )
    for field in ("sample", "step", "weight"):
        assert torch.equal(getattr(whole, field), getattr(parts, field))
    torch.testing.assert_close(whole.x, parts.x, rtol=1e-4, atol=1e-4)


def test_both_adapter_matrices_learn_under_gradient_checkpointing(resolved: Callable[..., Spec]) -> None:
    training = {"iterations": 3, "promptsPerIteration": 3}
    gradients = []
    for checkpointing in (False, True):
        run = resolved(training=training | {"gradientCheckpointing": checkpointing})
        policy, method = models.load_policy(run), methods.build(run.method)
        with nudged(policy):
            context = rollout_context(run, policy)
            rows = method.rows(context, method.rollout(context))
            method.loss(policy, rows, context.text[rows.sample]).losses.sum().backward()
        gradients.append({name: value.grad for name, value in policy.adapter().items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_accumulating_micro_batches_gives_the_same_gradient(resolved: Callable[..., Spec], size: int) -> None:
    run = resolved(training={"iterations": 3, "promptsPerIteration": 3, "microBatchSize": size})
    whole = resolved(training={"iterations": 3, "promptsPerIteration": 3, "microBatchSize": 100})
    norms = []
    for each in (run, whole):
        policy, method = models.load_policy(each), methods.build(each.method)
        context = rollout_context(each, policy)
        rows = method.rows(context, method.rollout(context))
        norms.append(Updater(policy, method, each).iterate(rows, context.text).gradient_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_balanced_steps_have_mean_weight_1_and_tame_the_last_step(resolved: Callable[..., Spec]) -> None:
    run = resolved(
        method={"name": "tailorpo", "stepWeight": "balanced"}, sampling={"steps": 20, "trainedSteps": {"count": 20}}
    )
    policy, method = models.load_policy(run), methods.build(run.method)
    weights = Updater(policy, method, run)._step_weight(torch.arange(20))
    assert isinstance(weights, Tensor)
    sensitivity = (policy.sampler.mean_m.abs() / policy.sampler.sigma).float()
    assert float(weights.mean()) == pytest.approx(1)
    products = weights * sensitivity
    torch.testing.assert_close(products, products[:1].expand(20))


def test_whole_trajectories_are_what_diffusers_draws(resolved: Callable[..., Spec], tiny_pipeline: Path) -> None:
    """With the same noise, the sampler and the stock pipeline give the same picture."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    run = resolved(sampling={"steps": 5, "guidanceScale": 3.0})
    policy = models.load_policy(run)
    noise = Noise((0, Purpose.SAMPLING, 0), [0], policy.latent_shape)
    ours = policy.decode(sample_trajectories(policy, policy.embed(["a cat"]), noise)[0])

    class Recorded(DDIMScheduler):  # type: ignore[misc]
        calls = 0

        def step(self, *args: Any, **kwargs: Any) -> Any:
            step, self.calls = self.calls, self.calls + 1
            return super().step(*args, **kwargs, eta=1.0, variance_noise=noise.step(step))

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipeline.scheduler = Recorded.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a cat", num_inference_steps=5, guidance_scale=3.0, latents=noise.initial(), output_type="pt"
    ).images
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=2e-3)
