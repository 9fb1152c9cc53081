"""By what DDPO normalises a reward: its prompt's last rewards, or those of the iteration while there are too few."""

from collections import deque
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from tailorpo_trainer.methods.reward_buffer import ENOUGH, LENGTH, RewardBuffer


def whole_numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def iterate(buffer: RewardBuffer, prompts: Tensor, rewards: Tensor, clip: float = 5.0) -> tuple[RewardBuffer, Tensor]:
    extended = buffer.extended(prompts, rewards)
    return extended, extended.advantages(prompts, rewards, clip)


def test_a_prompt_that_repeats_does_not_silence_the_others() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 12.0, 7.0, 8.0])
    _, advantages = iterate(RewardBuffer(), whole_numbers(0, 1, 2, 3, 4, 5, 6, 6), rewards)
    torch.testing.assert_close(advantages, (rewards - rewards.mean()) / rewards.std(correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("samples", [1, 3, 16, 40])
def test_many_iterations_are_those_of_a_queue_for_each_prompt(samples: int) -> None:
    """The rule of the official code, written down once more as plain loops over numpy arrays."""
    random, queues = numpy.random.default_rng(samples), [deque[float](maxlen=LENGTH) for _ in range(3)]
    buffer = RewardBuffer()
    for _ in range(40):
        drawn = random.permutation(3)[:2].repeat(samples)
        rewards = random.normal(drawn, 0.5).astype(numpy.float32)
        for prompt, reward in zip(drawn, rewards, strict=True):
            queues[prompt].append(float(reward))
        known = [numpy.array(queues[p] if len(queues[p]) >= ENOUGH else rewards, dtype=numpy.float64) for p in drawn]
        expected = [(float(r) - k.mean()) / (k.std() + 1e-6) for r, k in zip(rewards, known, strict=True)]
        buffer, advantages = iterate(buffer, torch.from_numpy(drawn), torch.from_numpy(rewards))
        torch.testing.assert_close(advantages, torch.tensor(expected).clamp(-5, 5).float(), rtol=1e-4, atol=1e-4)


def test_a_constant_reward_gives_no_advantage() -> None:
    for number in (1, 7, 20):
        _, advantages = iterate(RewardBuffer(), torch.zeros(number, dtype=torch.int64), torch.full((number,), 0.1))
        assert float(advantages.abs().max()) < 0.1


def test_advantages_are_clipped() -> None:
    _, advantages = iterate(RewardBuffer(), torch.arange(4), torch.tensor([1.0, 2.0, 3.0, 100.0]), clip=1.5)
    assert float(advantages.max()) == 1.5
    assert (advantages[:3] < 0).all()


def test_a_state_comes_back_as_it_was() -> None:
    buffer = RewardBuffer()
    for number in range(5):
        noise = torch.randn(12, generator=torch.Generator().manual_seed(number))
        buffer = buffer.extended(torch.arange(12) % 5 + 2**62, noise)
    assert max(map(len, buffer.rewards.values())) < LENGTH  # some rows are padded
    assert RewardBuffer.from_state(buffer.state()) == buffer
    assert RewardBuffer.from_state({}) == RewardBuffer.from_state(RewardBuffer().state()) == RewardBuffer()


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": None},
        {"prompts": torch.zeros(2)},
        {"prompts": whole_numbers(1)},
        {"counts": whole_numbers(1, LENGTH + 1)},
        {"counts": whole_numbers(0, 1)},
        {"rewards": torch.zeros(2, LENGTH - 1)},
        {"rewards": torch.full((2, LENGTH), float("nan"))},
        {"more": torch.zeros(1)},
    ],
)
def test_a_state_of_something_else(change: dict[str, Any]) -> None:
    state = RewardBuffer().extended(whole_numbers(1, 2), torch.ones(2)).state() | change
    with pytest.raises(ValueError, match=r"holds|another type or shape|out of range"):
        RewardBuffer.from_state({name: value for name, value in state.items() if value is not None})
