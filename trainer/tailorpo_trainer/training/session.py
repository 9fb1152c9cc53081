"""One process' run: everything that the loop needs, and how far it is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tailorpo_trainer import methods, prompts
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.evaluation import measurement
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.rollout.rows import concatenate
from tailorpo_trainer.rollout.scoring import Scorer, samples_to_check
from tailorpo_trainer.spec.job import Spec, TailorPOJob
from tailorpo_trainer.training.checkpointing import Checkpointing
from tailorpo_trainer.training.recorder import Recorder
from tailorpo_trainer.training.updater import Updater


@dataclass(eq=False, kw_only=True)
class Session:
    """The components of a run, and how far it is.

    Attributes:
        watched: rewards that are only evaluated, never trained on.
        prompts, held_out: those of the training and of the evaluations.
        world: this process among its peers; only the first writes files.
        checkpointing: None in all processes but the first, and if the run was complete at the start.
        iteration: number of iterations done; a checkpoint holds the state between two iterations.
        saved_at, evaluated_at: the iteration of the last checkpoint and of the last evaluation.
    """

    job: TailorPOJob
    policy: Policy
    method: methods.Method
    updater: Updater
    reward: RewardSum
    watched: RewardSum | None
    prompts: list[str]
    held_out: list[str]
    recorder: Recorder
    world: World
    checkpointing: Checkpointing | None
    iteration: int
    saved_at: int
    evaluated_at: int | None

    @property
    def run(self) -> Spec:
        return self.job.spec

    @property
    def iterations(self) -> int:
        return self.run.training.iterations

    @property
    def exact(self) -> bool:
        """Whether the denoiser computes in float32."""
        return self.policy.dtype == torch.float32

    @property
    def watched_names(self) -> tuple[str, ...]:
        names = self.watched.names if self.watched else ()
        return tuple(name for name in names if name not in self.reward.names)

    def rollout_context(self) -> methods.RolloutContext:
        """This process' share of this iteration's rollout: a function of the seed and the iteration alone."""
        training, sampling = self.run.training, self.run.sampling
        drawn = prompts.draw(self.prompts, training.seed, self.iteration, training.prompts_per_iteration)
        samples = [index for index in drawn for _ in range(training.samples_per_prompt)]
        share = self.world.share(len(samples))
        indices = [samples[number] for number in share]
        key = (training.seed, Purpose.TRAINING, self.iteration)
        noise = Noise(key, share, self.policy.latent_shape, self.policy.device)
        text = [self.prompts[index] for index in indices]
        steps = sampling.trained_steps
        assert steps.count is not None
        assert steps.choose is not None
        trained = choose_steps(self.policy.sampler, steps.count, steps.choose, noise.uniform())
        return methods.RolloutContext(
            policy=self.policy,
            text=self.policy.embed(text),
            prompts=torch.tensor([prompts.number(prompt) for prompt in text], device=self.policy.device),
            noise=noise,
            score=Scorer(
                self.policy,
                self.reward,
                text,
                self.recorder.phases,
                samples_to_check(self.run, self.iteration, trained),
            ),
            trained=trained,
            progress=self.iteration / self.iterations,
            keep_graph=methods.can_keep_graph(training, self.policy.batch_sizes, trained, len(share)),
            gather=self.world.gather,
        )

    def roll_out(self, context: methods.RolloutContext) -> Any:
        """The method's rollout, in batches of the sampling batch size, on which its result does not depend."""
        size = self.policy.batch_sizes.sampling
        batches = [slice(start, start + size) for start in range(0, len(context.text), size)]
        return concatenate([self.method.rollout(context.select(batch)) for batch in batches])

    def measure(self) -> measurement.Measurement:
        """Evaluate the policy as it is on the held-out prompts."""
        training = self.run.training
        return measurement.measure(
            self.policy,
            self.reward,
            self.watched,
            self.held_out,
            self.run.evaluation.images,
            training.seed,
            batch=self.policy.batch_sizes.sampling,
            world=self.world,
        )

    def work(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Work of this process in total, or since an earlier result of this method."""
        total: dict[str, float] = {**self.policy.counters.as_dict(), "reward_queries": self.reward.queries}
        return {key: value - since[key] for key, value in total.items()} if since else total

    def evaluation_due(self) -> bool:
        every = self.run.evaluation.every_iterations
        if every == 0 or self.evaluated_at == self.iteration:
            return False
        return self.iteration % every == 0 or self.iteration == self.iterations

    def checkpoint_due(self) -> bool:
        every = self.run.checkpoint.every_iterations
        return self.iteration > 0 and (self.iteration % every == 0 or self.iteration == self.iterations)

    def is_first_update(self) -> bool:
        """Whether the last update was the first one of a fresh adapter."""
        first = self.updater.updates == self.run.training.updates_per_iteration == 1
        return first and self.run.lora.initial is None

    def checkpoint(self) -> None:
        """Save the state, unless it is saved already or only some of an iteration's updates are done.

        Returns when it is copied; `wait_for_checkpoints` waits until it is committed.
        """
        between_iterations = self.updater.updates == self.iteration * self.run.training.updates_per_iteration
        if self.saved_at == self.iteration or not between_iterations:
            return
        self.world.same(self.policy.adapter())
        if self.recorder.incomplete:
            return  # `metrics.jsonl` would lack this iteration for ever
        self.saved_at = self.iteration
        if self.checkpointing is None:
            return
        with self.recorder.phases("checkpoint"):
            groups, state = self.updater.state()
            state = state | self.position() | {"totals": self.recorder.totals}
            self.checkpointing.save(self.iteration, groups, state)

    @cached_property
    def _digest(self) -> str:
        return prompts.digest(self.prompts)

    def position(self) -> dict[str, Any]:
        """The position in data and noise. For information only: both are functions of the seed and the iteration."""
        training = self.run.training
        drawn = self.iteration * training.prompts_per_iteration
        data = {"prompts_drawn": drawn, "packs_used_up": drawn // len(self.prompts), "prompts_sha256": self._digest}
        return {
            "data": data,
            "noise": {"seed": training.seed, "next_iteration": self.iteration},
        }

    def check_checkpoints(self) -> None:
        """Raise the error that keeps checkpoints from being written, if trying again cannot help."""
        if self.checkpointing is not None:
            self.checkpointing.check()

    def wait_for_checkpoints(self) -> None:
        """Wait until the last checkpoint is committed. Raises if it cannot be."""
        if self.checkpointing is not None:
            self.checkpointing.close()

    def save_before_end(self) -> TailorPOError | None:
        """Save the state and wait until it is committed. Returns the error that prevents that, if one does."""
        try:
            self.checkpoint()
            self.wait_for_checkpoints()
        except TailorPOError as error:
            return error
        return None
