"""From clean latents to rewards: decode, ask the rewards, remember what each of them said."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.rollout.agreement import Agreement, rank_agreement
from tailorpo_trainer.spec.job import TrainingSpec
from tailorpo_trainer.telemetry.timing import Phases

CHECKED, CHECK_EVERY = 80, 10
"""Pictures, about, that a check of the scoring decoder decodes again; iterations between checks without evaluations."""


def check_interval(run: TrainingSpec) -> int:
    """Iterations from one check of the scoring decoder to the next: those between evaluations; 0: no checks."""
    return 0 if run.model.scoring_decoder is None else run.evaluation.every_iterations or CHECK_EVERY


def rechecked(run: TrainingSpec, iteration: int, trained: Sequence[int]) -> int:
    """Samples of this iteration whose candidates the model's own decoder scores too; 0 where no check is due."""
    every = check_interval(run)
    if not every or iteration % every:
        return 0
    return max(1, CHECKED // (len(trained) * (run.method.candidates or 2)))


class Scorer:
    """Rewards of an iteration's samples, and their means so far; called with latents, equally many of each sample.

    recheck: of so many of the first samples, the model's own decoder is asked as well, if another one scores.
    """

    def __init__(
        self,
        policy: Policy,
        reward: RewardSum,
        prompts: Sequence[str],
        phases: Phases | None = None,
        recheck: int = 0,
    ) -> None:
        self.policy, self.reward, self.prompts = policy, reward, list(prompts)
        self.phases, self.recheck = phases or Phases(), recheck
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        self._checks: list[Agreement] = []

    def part(self, rows: slice) -> "Scorer":
        """The scorer of some of the samples, adding to the same statistics."""
        recheck = 0 if rows.start else self.recheck
        scorer = Scorer(self.policy, self.reward, self.prompts[rows], self.phases, recheck)
        scorer._sums, scorer._checks = self._sums, self._checks
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
                    pictures = self._decode(latents, step)
                with self.phases("score"):
                    scores = self.reward(pictures, prompts)
                if self.recheck and not self._finished(step):
                    rows = each * min(self.recheck, len(self.prompts))
                    with self.phases("check"):
                        real = self.reward(self.policy.decode(latents[:rows]), prompts[:rows]).total
                    self._checks.append(rank_agreement(scores.total[:rows].view(-1, each), real.view(-1, each)))
        except TailorPOError as error:
            raise type(error)(f"{error}, at denoising step {step}") from None
        for name, part in {"": scores.total, **scores.parts}.items():
            sums, values = self._sums[name], part.double()
            sums[0] += len(values)
            sums[1] += float(values.sum())
            sums[2] += float((values**2).sum())
        return scores.total

    def differentiable(self, latents: Tensor, step: int) -> Tensor:
        """The same, with a gradient to the latents, and without counting in the statistics."""
        return self.reward(self._decode(latents, step), self.prompts).total

    def _decode(self, latents: Tensor, step: int) -> Tensor:
        return self.policy.decode(latents) if self._finished(step) else self.policy.decode_for_scoring(latents)

    def _finished(self, step: int) -> bool:
        """Whether latents after this step are pictures, and no estimates of what they will be."""
        return step + 1 == self.policy.sampler.steps

    @property
    def agreement(self) -> Agreement:
        """Of the scoring decoder with the model's own, on this iteration's checked candidates."""
        return sum(self._checks, start=Agreement())

    def pool(self, world: World) -> None:
        """Make the statistics those of all processes' samples."""
        checked = [self.agreement.agreed, self.agreement.compared]
        *pooled, counts = (torch.tensor(sums, dtype=torch.float64) for sums in (*self._sums.values(), checked))
        world.sum([*pooled, counts])
        for sums, tensor in zip(self._sums.values(), pooled, strict=True):
            sums[:] = tensor.tolist()
        self._checks[:] = [Agreement(*map(int, counts.tolist()))]

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
