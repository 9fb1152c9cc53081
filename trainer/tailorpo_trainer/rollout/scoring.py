"""From clean latents to rewards: decode, score, and keep the statistics of each reward."""

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
"""About how many pictures a check of the scoring decoder decodes again; its interval in runs without evaluations."""


def check_interval(run: TrainingSpec) -> int:
    """Iterations between two checks of the scoring decoder, as many as between evaluations; 0: no checks."""
    return 0 if run.model.scoring_decoder is None else run.evaluation.every_iterations or CHECK_EVERY


def samples_to_check(run: TrainingSpec, iteration: int, trained: Sequence[int]) -> int:
    """Number of samples whose candidates the model's own decoder also scores; 0 if no check is due."""
    every = check_interval(run)
    if not every or iteration % every:
        return 0
    return max(1, CHECKED // (len(trained) * (run.method.candidates or 2)))


class Scorer:
    """Computes the rewards of an iteration's samples, and keeps their statistics.

    recheck: number of samples, the first ones, whose candidates are also scored by the model's own decoder.
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

    def select(self, rows: slice) -> "Scorer":
        """The scorer of some of the samples, which adds to the same statistics."""
        recheck = 0 if rows.start else self.recheck
        scorer = Scorer(self.policy, self.reward, self.prompts[rows], self.phases, recheck)
        scorer._sums, scorer._checks = self._sums, self._checks
        return scorer

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """Rewards, float32 [n], of clean latents [n, c, h, w], without a gradient.

        latents: equally many of each sample, one sample's in a row. step: the denoising step that is scored.
        Raises the `TailorPOError` of the rewards, with the step in its message.
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
                        exact = self.reward(self.policy.decode(latents[:rows]), prompts[:rows]).total
                    self._checks.append(rank_agreement(scores.total[:rows].view(-1, each), exact.view(-1, each)))
        except TailorPOError as error:
            raise type(error)(f"{error}, at denoising step {step}") from None
        for name, term in {"": scores.total, **scores.term_scores}.items():
            sums, values = self._sums[name], term.double()
            sums[0] += len(values)
            sums[1] += float(values.sum())
            sums[2] += float((values**2).sum())
        return scores.total

    def differentiable(self, latents: Tensor, step: int) -> Tensor:
        """Rewards [n] of latents [n, c, h, w], one for each sample, with a gradient; not part of the statistics."""
        return self.reward(self._decode(latents, step), self.prompts).total

    def gradient(self, latents: Tensor, step: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """As `differentiable`, but detached, and their gradient at a tensor [n, ...] that `latents` depend on.

        A pixel's gradient may be smaller than any number of fp16, in which the networks may compute. So it goes back
        through them scaled to the order of 1, by a power of two for each sample, which changes no digit.
        """
        pictures = self._decode(latents, step)
        rewards = self.reward(pictures, self.prompts).total
        (to_pixels,) = torch.autograd.grad(rewards.sum(), pictures)
        largest = to_pixels.flatten(1).abs().amax(1)
        scale = torch.where(largest > 0, torch.exp2(-largest.log2().floor()), 1.0)
        (gradient,) = torch.autograd.grad(pictures, at, to_pixels * scale.view(-1, 1, 1, 1))
        return rewards.detach(), gradient / scale.view(-1, *[1] * (at.dim() - 1))

    def _decode(self, latents: Tensor, step: int) -> Tensor:
        return self.policy.decode(latents) if self._finished(step) else self.policy.decode_for_scoring(latents)

    def _finished(self, step: int) -> bool:
        """Whether this step is the last: its latents are final, and no estimates x0hat."""
        return step + 1 == self.policy.sampler.steps

    @property
    def agreement(self) -> Agreement:
        """Rank agreement of the scoring decoder with the model's own, on this iteration's rechecked candidates."""
        return sum(self._checks, start=Agreement())

    def all_reduce(self, world: World) -> None:
        """Replace the statistics by those of all processes' samples."""
        checked = [self.agreement.agreed, self.agreement.compared]
        *totals, counts = (torch.tensor(sums, dtype=torch.float64) for sums in (*self._sums.values(), checked))
        world.sum([*totals, counts])
        for sums, tensor in zip(self._sums.values(), totals, strict=True):
            sums[:] = tensor.tolist()
        self._checks[:] = [Agreement(*map(int, counts.tolist()))]

    def mean(self, name: str = "") -> float:
        """Mean score of one reward, or of the weighted sum (name `""`); NaN if nothing was scored."""
        count, total, _ = self._sums[name]
        return total / count if count else float("nan")

    def std(self, name: str = "") -> float:
        """Standard deviation of the scores whose mean is `mean`."""
        count, total, squares = self._sums[name]
        return max(0.0, squares / count - (total / count) ** 2) ** 0.5 if count else float("nan")

    @property
    def names(self) -> list[str]:
        """The names of the rewards that were scored."""
        return [name for name in self._sums if name]
