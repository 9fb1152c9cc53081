"""Make a session from a document: load everything, find where to go on, and say at once what is wrong."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tailorpo_trainer import checkpoint, document, methods, models, prompts, rewards
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.results import publishing
from tailorpo_trainer.results.locations import Locations
from tailorpo_trainer.results.run_folder import Output, write_json, write_text
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import Spec, TailorPOJob
from tailorpo_trainer.spec.progress import Checkpoint, Progress
from tailorpo_trainer.telemetry.display import Display, Kind, open_display
from tailorpo_trainer.telemetry.observer import Observer
from tailorpo_trainer.training.checkpointing import Saving
from tailorpo_trainer.training.environment import environment
from tailorpo_trainer.training.recorder import Recorder
from tailorpo_trainer.training.session import Session
from tailorpo_trainer.training.updater import Updater


def open_session(
    job: TailorPOJob,
    place: Locations,
    base: Path | None,
    fresh: bool,
    display_kind: Kind,
    world: World,
    observers: Sequence[Observer] = (),
) -> Session:
    """Load everything, cheapest first. `job` and `place.job` differ in where checkpoints are kept alone."""
    run, least_attempt = job.spec, _least_attempt()
    _check_shares(run, world)
    training_prompts = list(prompts.load(run.prompts, base))
    held_out = list(prompts.load(run.evaluation.prompts, base)) if run.evaluation.prompts else training_prompts
    output = Output(place.output)
    storage, start = None, None
    if world.first:
        output.create()
        storage = checkpoint.open_run(place.open(), job)
        start = None if fresh else storage.latest()
    record = Recorder(output, beginning(job), speaks=world.first)
    start = _shared(start, world)
    models.silence_libraries()
    device = models.pick_device()
    method = methods.build(run.method)
    reward = rewards.load(run.rewards, device)
    watched = (
        rewards.load(run.evaluation.rewards, device, "spec.evaluation.rewards") if run.evaluation.rewards else None
    )
    if method.needs_gradient:
        rewards.require_differentiable(reward, run.method.name)
    policy = models.load_policy(run, device)
    policy.check_stop = world.check
    updater = Updater(policy, method, run, world)
    if world.first:
        write_text(output.job, document.dump(place.job))
        write_json(output.prompts, {"training": training_prompts, "evaluation": held_out})
        write_json(output.environment, environment(device, world.size))
    done = 0
    if start is not None:
        updater.load(start)
        done = start.step
    complete = done == run.training.iterations
    attempt, saving = None, None
    if storage is not None:
        stored = publishing.restore(storage.store, start.attempt, done, output) if place.apart and start else set()
        # The question lists the whole storage: only a complete run, which may have nothing left to do, is worth it.
        kept = start is not None and complete and (not place.apart or publishing.is_whole(storage.store, start.attempt))
        if not kept:
            attempt = storage.begin(start, at_least=least_attempt)
            publisher = publishing.Publisher(storage.store, attempt.number, output, stored) if place.apart else None
            saving = Saving(attempt, record, run.checkpoint, publisher)
    display = open_display(display_kind, run.training.iterations, done) if world.first else Display()
    record.observers = (display, *observers)
    number = attempt.number if attempt else start.attempt if start else least_attempt
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
        saving,
        iteration=done,
        saved_at=done,
        evaluated_at=done if evaluated else None,
    )
    display.message(
        _hello(session) if not complete else f"{job.metadata.name}: complete after {done} iterations, nothing to do"
    )
    return session


def _check_shares(run: Spec, world: World) -> None:
    if problem := rules.shares_problem(run, world.size):
        raise ConfigurationError(f"spec.training.promptsPerIteration: {problem}")
    if run.evaluation.every_iterations and run.evaluation.images < world.size:
        raise ConfigurationError(
            f"spec.evaluation.images: {run.evaluation.images} pictures cannot be shared by {world.size} processes: "
            f"at least {world.size}"
        )


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


def beginning(job: TailorPOJob) -> Progress:
    """What is known of a run before anything is loaded."""
    return Progress(name=job.metadata.name, namespace=job.metadata.namespace, of=job.spec.training.iterations)


def _least_attempt() -> int:
    """The operator's own count of attempts, if there is an operator."""
    text = os.environ.get("TAILORPO_ATTEMPT", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"TAILORPO_ATTEMPT: {text!r} must be a whole number, at least 1")
    return int(text)


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
