"""From clean latents to rewards: decode, ask the rewards, remember what each of them said."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tailorpo_trainer.distributed import World
from tailorpo_trainer.exits import TailorPOError
from tailorpo_trainer.policy import Policy
from tailorpo_trainer.rewards.combine import RewardSum
from tailorpo_trainer.timing import Phases


class Scorer:
    """Rewards of an iteration's samples, and their means so far; called with latents, equally many of each sample."""

    def __init__(self, policy: Policy, reward: RewardSum, prompts: Sequence[str], phases: Phases | None = None) -> None:
        self.policy, self.reward, self.prompts = policy, reward, list(prompts)
        self.phases = phases or Phases()
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def part(self, rows: slice) -> "Scorer":
        """The scorer of some of the samples, adding to the same statistics."""
        scorer = Scorer(self.policy, self.reward, self.prompts[rows], self.phases)
        scorer._sums = self._sums
        return scorer

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Rewards [n] of clean latents [n, c, h, w], n a multiple of the number of samples; no gradient.

        step: the denoising step that is judged, for messages. Raises what the rewards raise, with the step.
        """
        each = len(latents) // len(self.prompts)
        prompts = [prompt for prompt in self.prompts for _ in range(each)]
        try:
            with torch.no_grad():
                with self.phases("decode"):
                    pictures = self.policy.decode(latents)
                with self.phases("score"):
                    scores = self.reward(pictures, prompts)
        except TailorPOError as error:
            raise type(error)(f"{error}, at denoising step {step}") from None
        for name, part in {"": scores.total, **scores.parts}.items():
            sums, values = self._sums[name], part.double()
            sums[0] += len(values)
            sums[1] += float(values.sum())
            sums[2] += float((values**2).sum())
        return scores.total

    def differentiable(self, latents: Tensor) -> Tensor:
        """The same, with a gradient to the latents, and without counting in the statistics."""
        return self.reward(self.policy.decode(latents), self.prompts).total

    def pool(self, world: World) -> None:
        """Make the statistics those of all processes' samples."""
        for sums in self._sums.values():
            pooled = torch.tensor(sums, dtype=torch.float64)
            world.sum([pooled])
            sums[:] = pooled.tolist()

    def mean(self, name: str = "") -> float:
        """Mean score of this iteration of one reward, or of the weighted sum (name `""`)."""
        count, total, _ = self._sums[name]
        return total / count if count else float("nan")

    def std(self, name: str = "") -> float:
        """Standard deviation beside `mean`."""
        count, total, squares = self._sums[name]
        return max(0.0, squares / count - (total / count) ** 2) ** 0.5 if count else float("nan")

    @property
    def names(self) -> list[str]:
        return [name for name in self._sums if name]
