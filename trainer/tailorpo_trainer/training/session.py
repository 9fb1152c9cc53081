"""One process' run: everything that the loop needs, and how far it is."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from tailorpo_trainer import estimate, methods, models, prompts, report
from tailorpo_trainer.diffusion.ddim import choose_steps
from tailorpo_trainer.diffusion.noise import Noise, Purpose
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.evaluation import measurement
from tailorpo_trainer.results.run_folder import Output, write_json
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.rollout.rows import concatenate
from tailorpo_trainer.rollout.scoring import Scorer, samples_to_check
from tailorpo_trainer.spec.job import Spec, TailorPOJob
from tailorpo_trainer.telemetry.display import Display
from tailorpo_trainer.training.checkpointing import Saving
from tailorpo_trainer.training.recorder import Recorder
from tailorpo_trainer.training.updater import Updater


@dataclass(eq=False)
class Session:
    """The parts of a run, and how far it is.

    Attributes:
        world: this process among its peers; only the first writes.
        iteration: iterations done; the state between two is what a checkpoint holds.
        saving: where checkpoints go; None when the run was complete already, and in all processes but the first.
        evaluated_at: the iteration whose evaluation was made last.
    """

    job: TailorPOJob
    output: Output
    policy: Policy
    method: methods.Method
    updater: Updater
    reward: RewardSum
    watched: RewardSum | None
    prompts: list[str]
    held_out: list[str]
    record: Recorder
    display: Display
    world: World
    saving: Saving | None
    iteration: int = 0
    saved_at: int = 0
    evaluated_at: int | None = None

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

    def scene(self) -> methods.RolloutContext:
        """This process' share of what this iteration rolls out: a function of the seed and the iteration alone."""
        training, sampling = self.run.training, self.run.sampling
        drawn = prompts.draw(self.prompts, training.seed, self.iteration, training.prompts_per_iteration)
        samples = [index for index in drawn for _ in range(training.samples_per_prompt)]
        mine = self.world.share(len(samples))
        chosen = [samples[number] for number in mine]
        key = (training.seed, Purpose.TRAINING, self.iteration)
        noise = Noise(key, mine, self.policy.latent_shape, self.policy.device)
        text = [self.prompts[index] for index in chosen]
        steps = sampling.trained_steps
        assert steps.count is not None
        assert steps.choose is not None
        trained = choose_steps(self.policy.sampler, steps.count, steps.choose, noise.uniform())
        return methods.RolloutContext(
            policy=self.policy,
            text=self.policy.embed(text),
            prompts=torch.tensor(chosen, device=self.policy.device),
            noise=noise,
            score=Scorer(
                self.policy, self.reward, text, self.record.phases, samples_to_check(self.run, self.iteration, trained)
            ),
            trained=trained,
            progress=self.iteration / self.iterations,
            keep_graph=methods.can_keep_graph(training, self.policy.batch_sizes, trained, len(mine)),
            gather=self.world.gather,
        )

    def roll_out(self, scene: methods.RolloutContext) -> Any:
        """The method's rollout, in batches where the document asks for them; what is drawn does not depend on them."""
        size = self.policy.batch_sizes.sampling
        parts = [slice(start, start + size) for start in range(0, len(scene.text), size)]
        return concatenate([self.method.rollout(scene.select(part)) for part in parts])

    def measure(self) -> measurement.Measurement:
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
        """Work of this process so far, or since an earlier reading."""
        now: dict[str, float] = {**self.policy.counters.as_dict(), "reward_queries": self.reward.queries}
        return {key: value - since[key] for key, value in now.items()} if since else now

    def evaluation_due(self) -> bool:
        every = self.run.evaluation.every_iterations
        if every == 0 or self.evaluated_at == self.iteration:
            return False
        return self.iteration % every == 0 or self.iteration == self.iterations

    def checkpoint_due(self) -> bool:
        every = self.run.checkpoint.every_iterations
        return self.iteration > 0 and (self.iteration % every == 0 or self.iteration == self.iterations)

    def is_beginning(self) -> bool:
        """Whether the update just made was the first of a fresh adapter."""
        first = self.updater.updates == self.run.training.updates_per_iteration == 1
        return first and self.run.lora.initial is None

    def checkpoint(self) -> None:
        """Save the state between two iterations, unless that is done or an iteration's updates are half made.

        Returns when it is copied; `settle` waits until it is committed.
        """
        whole = self.updater.updates == self.iteration * self.run.training.updates_per_iteration
        if self.saved_at == self.iteration or not whole:
            return
        self.world.same(self.policy.adapter())
        self.saved_at = self.iteration
        if self.saving is None:
            return
        with self.record.phases("checkpoint"):
            groups, state = self.updater.state()
            self.saving.save(self.iteration, groups, state | self.position() | {"totals": self.record.totals})

    def position(self) -> dict[str, Any]:
        """Where the data and the noise are: facts to read, since both are functions of the seed and the iteration."""
        training = self.run.training
        drawn = self.iteration * training.prompts_per_iteration
        return {
            "data": {"prompts_drawn": drawn, "packs_used_up": drawn // len(self.prompts)},
            "noise": {"seed": training.seed, "next_iteration": self.iteration},
        }

    def check_saving(self) -> None:
        """Raise what keeps checkpoints from being written, if trying again cannot help."""
        if self.saving is not None:
            self.saving.check()

    def settle(self) -> None:
        """Wait until the last checkpoint is committed; raises if it cannot be."""
        if self.saving is not None:
            self.saving.close()

    def stopped(self) -> TailorPOError:
        """Save the state; what a run that was asked to stop ends with: never a stop, if it could not be saved."""
        try:
            self.checkpoint()
            self.settle()
        except TailorPOError as error:
            return error
        return self.world.stop.error(f"after iteration {self.iteration} of {self.iterations}")

    def rescue(self, error: TailorPOError) -> TailorPOError:
        """Save what can be saved before a run ends with an error; returns it, with what else went wrong."""
        try:
            self.checkpoint()
            self.settle()
        except TailorPOError as another:
            if another is not error:
                return type(error)(f"{error}; nor could the last checkpoint be written: {another}")
        return error

    def last_words(self, error: TailorPOError) -> None:
        """Record why the run ends, and draw the page of what there is."""
        with suppress(TailorPOError, OSError):  # on a full disk there are none, and the cause counts
            self.record.failed(error, self.world.peer_exit_code)
            self.write_report()

    def finish(self) -> None:
        """Write the result: the adapter as diffusers loads it, and the report. Raises if it cannot be kept."""
        if not self.world.first:
            return
        with self.updater.averaged():
            models.save_adapter(self.policy, self.output.adapter)
        write_json(self.output.cost, estimate.row_costs(self.run))
        self.settle()
        self.record.succeeded(self.saving.adapter(self.output) if self.saving else str(self.output.adapter))
        self.display.message(f"adapter: {self.output.adapter}")
        self.write_report(strict=True)

    def write_report(self, strict: bool = False) -> None:
        """The page of what there is so far, also of a run that was stopped or failed; published where results are kept.

        strict: raise if it cannot be published.
        """
        if not self.world.first:
            return
        self.display.message(f"report: {report.write(self.output.root)}")
        if self.saving is not None:
            self.saving.publish(strict)
