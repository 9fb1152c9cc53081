"""One process' run: everything the loop needs, made from the document, and its state."""

import json
import os
import platform
import time
from collections.abc import Sequence
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
    prompts,
    report,
    rewards,
    rules,
    spec,
)
from tailorpo_trainer.display import Display, Kind, open_display
from tailorpo_trainer.distributed import World
from tailorpo_trainer.exits import ConfigurationError
from tailorpo_trainer.noise import Noise, Purpose
from tailorpo_trainer.observing import Observer
from tailorpo_trainer.outputs import Output, write_json, write_text
from tailorpo_trainer.policy import Policy
from tailorpo_trainer.progress import Checkpoint, Progress
from tailorpo_trainer.record import Record
from tailorpo_trainer.records import merge
from tailorpo_trainer.rewards.combine import RewardSum
from tailorpo_trainer.sampler import choose_steps
from tailorpo_trainer.scoring import Scorer, rechecked
from tailorpo_trainer.spec import TailorPOJob
from tailorpo_trainer.updater import Updater

PACKAGES = ("tailorpo", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "safetensors")


@dataclass(eq=False)
class Session:
    """The parts of a run, and how far it is.

    Attributes:
        world: this process among its peers; only the first writes.
        iteration: iterations done; the state between two is what a checkpoint holds.
        attempt: where checkpoints go; None when the run was complete already, and in all processes but the first.
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
    record: Record
    display: Display
    world: World
    attempt: checkpoint.Attempt | None
    iteration: int = 0
    saved_at: int = 0
    evaluated_at: int | None = None

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
        return methods.Scene(
            policy=self.policy,
            text=self.policy.embed(text),
            prompts=torch.tensor(chosen, device=self.policy.device),
            noise=noise,
            score=Scorer(
                self.policy, self.reward, text, self.record.phases, rechecked(self.run, self.iteration, trained)
            ),
            trained=trained,
            progress=self.iteration / self.iterations,
            keep_graph=methods.can_keep_graph(training, self.policy.portions, trained, len(mine)),
            gather=self.world.gather,
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
            world=self.world,
        )

    def work(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """Work of this process so far, or since an earlier reading."""
        training = self.run.training
        samples = training.prompts_per_iteration * training.samples_per_prompt
        now: dict[str, float] = {
            "images": self.iteration * len(self.world.share(samples)),
            "reward_queries": self.reward.queries,
            **self.policy.work.as_dict(),
        }
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
        """Commit the state between two iterations, unless that is done or an iteration's updates are half made."""
        whole = self.updater.updates == self.iteration * self.run.training.updates_per_iteration
        if self.saved_at == self.iteration or not whole:
            return
        self.world.same(self.policy.adapter())
        self.saved_at = self.iteration
        if self.attempt is None:
            return
        since = time.perf_counter()
        with self.record.phases("checkpoint"):
            groups, state = self.updater.state()
            saved = self.attempt.save(self.iteration, groups, state | {"totals": self.record.totals})
            seconds = time.perf_counter() - since
            self.attempt.prune(self.run.checkpoint.keep)
        uri = self.attempt.store.uri(saved.ref.prefix)
        self.record.saved(self.iteration, uri, seconds, saved.size)


def open_session(
    job: TailorPOJob,
    root: Path,
    base: Path | None,
    fresh: bool,
    display_kind: Kind,
    world: World,
    observers: Sequence[Observer] = (),
) -> Session:
    """Load everything, cheapest first, so that what is wrong shows before minutes have passed."""
    run, least_attempt = job.spec, _least_attempt()
    if problem := rules.shares_problem(run, world.size):
        raise ConfigurationError(f"spec.training.promptsPerIteration: {problem}")
    if run.evaluation.every_iterations and run.evaluation.images < world.size:
        raise ConfigurationError(
            f"spec.evaluation.images: {run.evaluation.images} pictures cannot be shared by {world.size} processes: "
            f"at least {world.size}"
        )
    training_prompts = list(prompts.load(run.prompts, base))
    held_out = list(prompts.load(run.evaluation.prompts, base)) if run.evaluation.prompts else training_prompts
    output = Output(root)
    storage, start = None, None
    if world.first:
        output.create()
        storage = checkpoint.open_run(checkpoint.open_store(root), job)
        start = None if fresh else storage.latest()
    record = Record(output, beginning(job), speaks=world.first)
    start = _shared(start, world)
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
    policy.interrupt = world.check
    updater = Updater(policy, method, run, world)
    if world.first:
        write_text(output.job, document.dump(job))
        write_json(output.prompts, {"training": training_prompts, "evaluation": held_out})
        write_json(output.environment, environment(device, world.size))
    done = 0
    if start is not None:
        updater.load(start)
        done = start.step
    complete = done == run.training.iterations
    attempt = None if complete or storage is None else storage.begin(start, at_least=least_attempt)
    display = open_display(display_kind, run.training.iterations, done) if world.first else Display()
    record.observers = (display, *observers)
    number = start.attempt if start and complete else attempt.number if attempt else least_attempt
    newest = Checkpoint(uri=start.uri, step=start.step, time=start.manifest.time) if start else None
    record.resume(number, done, start.state["totals"] if start else {}, newest)
    evaluated = world.broadcast(b"1" if record.evaluated(done) else b"0") == b"1"
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
        world,
        attempt,
        iteration=done,
        saved_at=done,
        evaluated_at=done if evaluated else None,
    )
    display.message(
        _hello(session) if not complete else f"{job.metadata.name}: complete after {done} iterations, nothing to do"
    )
    return session


def _shared(start: checkpoint.Loaded | None, world: World) -> checkpoint.Loaded | None:
    """The checkpoint that the first process read and verified, in all of them."""
    if world.size == 1:
        return start
    head, objects = {}, {}
    if start is not None:
        sizes = {name: len(data) for name, data in start.objects.items()}
        head = {"manifest": start.manifest.encode().decode(), "uri": start.uri, "state": start.state, "sizes": sizes}
    head = json.loads(world.broadcast(json.dumps(head).encode()))
    if not head:
        return None
    for name in head["sizes"]:
        objects[name] = world.broadcast(start.objects[name] if start is not None else b"")
    return checkpoint.Loaded(
        checkpoint.Manifest.decode(head["manifest"].encode(), head["uri"]), head["uri"], head["state"], objects
    )


def finish(session: Session) -> None:
    """Write the result: the adapter as diffusers loads it, and the report."""
    if not session.world.first:
        return
    with session.updater.averaged():
        models.save_adapter(session.policy, session.output.adapter)
    write_json(session.output.cost, estimate.row_costs(session.run))
    session.record.succeeded(session.output.adapter)
    session.display.message(f"adapter: {session.output.adapter}")
    write_report(session)


def write_report(session: Session) -> None:
    """The page of what there is so far, also of a run that was stopped or failed."""
    if not session.world.first:
        return
    session.display.message(f"report: {report.write(session.output.root)}")


def beginning(job: TailorPOJob) -> Progress:
    """What is known of a run before anything is loaded."""
    return Progress(name=job.metadata.name, namespace=job.metadata.namespace, of=job.spec.training.iterations)


def _least_attempt() -> int:
    """The operator's own count of attempts, if there is an operator."""
    text = os.environ.get("TAILORPO_ATTEMPT", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"TAILORPO_ATTEMPT: {text!r} must be a whole number, at least 1")
    return int(text)


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
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
        "processes": processes,
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
    processes = f"{session.world.size} processes, " if session.world.size > 1 else ""
    start = f", going on after iteration {session.iteration}" if session.iteration else ""
    return (
        f"{session.job.metadata.name}: {run.method.name} on {run.model.name} for {rewards_text}; "
        f"{weights:,} adapter weights, {run.training.iterations} iterations of "
        f"{run.training.prompts_per_iteration * run.training.samples_per_prompt} samples on {processes}{policy.device} "
        f"in {str(policy.dtype).removeprefix('torch.')}{start}"
    )
