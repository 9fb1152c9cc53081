"""One process' run: everything the loop needs, made from the document, and its state."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tailorpo_trainer import (
    checkpoint,
    document,
    estimate,
    evaluate,
    methods,
    models,
    places,
    prompts,
    publishing,
    report,
    rewards,
    spec,
)
from tailorpo_trainer.display import Display, Kind, open_display
from tailorpo_trainer.exits import ConfigurationError, TailorPOError
from tailorpo_trainer.noise import Noise, Purpose
from tailorpo_trainer.outputs import Output, write_json, write_text
from tailorpo_trainer.policy import Policy
from tailorpo_trainer.record import Record
from tailorpo_trainer.records import merge
from tailorpo_trainer.rewards.combine import RewardSum
from tailorpo_trainer.sampler import choose_steps
from tailorpo_trainer.saving import Saving
from tailorpo_trainer.scoring import Scorer
from tailorpo_trainer.spec import TailorPOJob
from tailorpo_trainer.stopping import Stop
from tailorpo_trainer.updater import Updater

PACKAGES = ("tailorpo", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "safetensors")


@dataclass(eq=False)
class Session:
    """The parts of a run, and how far it is.

    Attributes:
        iteration: iterations done; the state between two is what a checkpoint holds.
        saving: where checkpoints go; None when the run was complete already.
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
    record: Record
    display: Display
    stop: Stop
    saving: Saving | None
    iteration: int = 0
    saved_at: int = 0

    @property
    def run(self) -> spec.Spec:
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

    def scene(self) -> methods.Scene:
        """What this iteration rolls out: a function of the seed and the iteration alone."""
        training, sampling = self.run.training, self.run.sampling
        drawn = prompts.draw(self.prompts, training.seed, self.iteration, training.prompts_per_iteration)
        chosen = [index for index in drawn for _ in range(training.samples_per_prompt)]
        key = (training.seed, Purpose.TRAINING, self.iteration)
        noise = Noise(key, range(len(chosen)), self.policy.latent_shape, self.policy.device)
        text = [self.prompts[index] for index in chosen]
        steps = sampling.trained_steps
        assert steps.count is not None
        assert steps.choose is not None
        trained = choose_steps(self.policy.sampler, steps.count, steps.choose, noise.uniform())
        return methods.Scene(
            policy=self.policy,
            text=self.policy.embed(text),
            prompts=torch.tensor(chosen, device=self.policy.device),
            noise=noise,
            score=Scorer(self.policy, self.reward, text, self.record.phases),
            trained=trained,
            progress=self.iteration / self.iterations,
            keep_graph=methods.can_keep_graph(training, self.policy.portions, trained),
        )

    def roll_out(self, scene: methods.Scene) -> Any:
        """The method's rollout, in batches where the document asks for them; what is drawn does not depend on them."""
        size = self.policy.portions.sampling
        parts = [slice(start, start + size) for start in range(0, len(scene.text), size)]
        return merge([self.method.roll_out(scene.part(part)) for part in parts])

    def measure(self) -> evaluate.Measurement:
        training = self.run.training
        return evaluate.measure(
            self.policy,
            self.reward,
            self.watched,
            self.held_out,
            self.run.evaluation.images,
            training.seed,
            batch=self.policy.portions.sampling,
        )

    def work(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Work done so far, or since an earlier reading."""
        training = self.run.training
        now: dict[str, float] = {
            "images": self.iteration * training.prompts_per_iteration * training.samples_per_prompt,
            "reward_queries": self.reward.queries,
            **self.policy.work.as_dict(),
        }
        return {key: value - since[key] for key, value in now.items()} if since else now

    def evaluation_due(self) -> bool:
        every = self.run.evaluation.every_iterations
        if every == 0 or self.record.evaluated(self.iteration):
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
        if self.saved_at == self.iteration or not whole or self.saving is None:
            return
        with self.record.phases("checkpoint"):
            groups, state = self.updater.state()
            self.saving.save(self.iteration, groups, state | self.position() | {"totals": self.record.totals})
        self.saved_at = self.iteration

    def position(self) -> dict[str, Any]:
        """Where the data and the noise are: facts to read, since both are functions of the seed and the iteration."""
        training = self.run.training
        drawn = self.iteration * training.prompts_per_iteration
        return {
            "data": {"prompts_drawn": drawn, "packs_used_up": drawn // len(self.prompts)},
            "noise": {"seed": training.seed, "next_iteration": self.iteration},
        }

    def follow(self) -> None:
        """Note the checkpoints that were committed meanwhile; raises if they cannot be any more."""
        if self.saving is not None:
            self.saving.follow()

    def settle(self) -> None:
        """Wait until the last checkpoint is committed; raises if it cannot be."""
        if self.saving is not None:
            try:
                self.saving.close()
            except TailorPOError as error:
                with suppress(OSError):  # a full disk, whose error this may be
                    self.record.failed(self.iteration, error)
                raise

    def rescue(self, error: TailorPOError) -> TailorPOError:
        """Save what can be saved before a run ends with an error; returns it, with what else went wrong."""
        try:
            self.checkpoint()
            self.settle()
        except TailorPOError as another:
            if another is not error:
                return type(error)(f"{error}; nor could the last checkpoint be written: {another}")
        return error


def open_session(
    job: TailorPOJob, root: Path | None, base: Path | None, fresh: bool, display_kind: Kind, stop: Stop
) -> Session:
    """Load everything, cheapest first, so that what is wrong shows before minutes have passed."""
    place = places.choose(job, root, base)
    run, least_attempt = job.spec, _least_attempt()
    training_prompts = list(prompts.load(run.prompts, base))
    held_out = list(prompts.load(run.evaluation.prompts, base)) if run.evaluation.prompts else training_prompts
    output = Output(place.output)
    output.create()
    storage = checkpoint.open_run(place.open(), job)
    start = None if fresh else storage.latest()
    models.quiet()
    device = models.pick_device()
    method = methods.build(run.method)
    reward = rewards.load(run.rewards, device)
    watched = (
        rewards.load(run.evaluation.rewards, device, "spec.evaluation.rewards") if run.evaluation.rewards else None
    )
    if method.needs_gradient:
        rewards.require_differentiable(reward, run.method.name)
    policy = models.load_policy(run, device)
    policy.interrupt = stop.check
    updater = Updater(policy, method, run)
    write_text(output.job, document.dump(place.job))
    write_json(output.prompts, {"training": training_prompts, "evaluation": held_out})
    write_json(output.environment, environment(device))
    done = 0
    if start is not None:
        updater.load(start)
        done = start.step
    complete = done == run.training.iterations
    attempt = None if complete else storage.begin(start, at_least=least_attempt)
    display = open_display(display_kind, run.training.iterations, done)
    record = Record(output, display, job.metadata.name, run.training.iterations)
    record.attempt = start.attempt if start and complete else attempt.number if attempt else 1
    stored = publishing.restore(storage.store, start.attempt, done, output) if place.apart and start else set()
    newest = {"uri": start.uri, "step": start.step, "time": start.manifest.time} if start else None
    record.resume(done, start.state["totals"] if start else {}, newest)
    publisher = publishing.Publisher(storage.store, attempt.number, output, stored) if place.apart and attempt else None
    session = Session(
        job,
        output,
        policy,
        method,
        updater,
        reward,
        watched,
        training_prompts,
        held_out,
        record,
        display,
        stop,
        Saving(attempt, record, run.checkpoint, publisher) if attempt else None,
        iteration=done,
        saved_at=done,
    )
    display.message(
        _hello(session) if not complete else f"{job.metadata.name}: complete after {done} iterations, nothing to do"
    )
    return session


def finish(session: Session) -> None:
    """Write the result: the adapter as diffusers loads it, and the report."""
    with session.updater.averaged():
        models.save_adapter(session.policy, session.output.adapter)
    write_json(session.output.cost, estimate.row_costs(session.run))
    session.settle()
    session.record.progress("Succeeded")
    session.display.message(f"adapter: {session.output.adapter}")
    write_report(session)


def write_report(session: Session) -> None:
    """The page of what there is so far, also of a run that was stopped or failed."""
    session.display.message(f"report: {report.write(session.output.root)}")
    if session.saving is not None:
        session.saving.publish()


def _least_attempt() -> int:
    """The operator's own count of attempts, if there is an operator."""
    text = os.environ.get("TAILORPO_ATTEMPT", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"TAILORPO_ATTEMPT: {text!r} must be a whole number, at least 1")
    return int(text)


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides the document."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
        "packages": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _hello(session: Session) -> str:
    run, policy = session.run, session.policy
    weights = sum(parameter.numel() for parameter in policy.parameters)
    rewards_text = " + ".join(f"{reward.weight:g} x {reward.name}" for reward in run.rewards)
    start = f", going on after iteration {session.iteration}" if session.iteration else ""
    return (
        f"{session.job.metadata.name}: {run.method.name} on {run.model.name} for {rewards_text}; "
        f"{weights:,} adapter weights, {run.training.iterations} iterations of "
        f"{run.training.prompts_per_iteration * run.training.samples_per_prompt} samples on {policy.device} "
        f"in {str(policy.dtype).removeprefix('torch.')}{start}"
    )
