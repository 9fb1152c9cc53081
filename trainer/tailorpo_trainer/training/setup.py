"""Make a session from a document: load and check everything, find where to go on, build the session."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tailorpo_trainer import checkpoint, document, files, methods, models, prompts, rewards
from tailorpo_trainer.diffusion.policy import Policy
from tailorpo_trainer.distributed.world import World
from tailorpo_trainer.errors import ConfigurationError
from tailorpo_trainer.results import publishing
from tailorpo_trainer.results.locations import Locations
from tailorpo_trainer.results.ownership import Owner
from tailorpo_trainer.results.run_folder import RunFolder, write_json
from tailorpo_trainer.rewards.weighted_sum import RewardSum
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import Spec, TailorPOJob
from tailorpo_trainer.spec.progress import Checkpoint, Progress
from tailorpo_trainer.telemetry.display import Display, Kind, open_display
from tailorpo_trainer.telemetry.observer import Observer
from tailorpo_trainer.telemetry.termination import TerminationReporter
from tailorpo_trainer.training import reporting
from tailorpo_trainer.training.agreement import check_contents
from tailorpo_trainer.training.checkpointing import Checkpointing
from tailorpo_trainer.training.environment import environment
from tailorpo_trainer.training.recorder import Recorder
from tailorpo_trainer.training.session import Session
from tailorpo_trainer.training.updater import Updater

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that the document names, loaded and checked.

    Attributes:
        storage: of the checkpoints, known to belong to this job; None in all processes but the first.
        start: the checkpoint to go on from; None to begin from nothing.
    """

    prompts: list[str]
    held_out: list[str]
    recorder: Recorder
    storage: checkpoint.Run | None
    start: checkpoint.Loaded | None
    method: methods.Method
    reward: RewardSum
    watched: RewardSum | None
    policy: Policy
    updater: Updater

    @property
    def done(self) -> int:
        """Number of iterations that are done."""
        return self.start.step if self.start is not None else 0


def open_session(
    job: TailorPOJob,
    locations: Locations,
    base: Path | None = None,
    *,
    fresh: bool = False,
    world: World,
    reporter: TerminationReporter,
    display: Kind = "auto",
    observers: Sequence[Observer] = (),
) -> Session:
    """Prepare, restore, claim, assemble. Raises `TailorPOError`, if possible before anything large is loaded.

    job: equals `locations.job` except for the storage of the checkpoints.
    """
    least_attempt = _least_attempt()
    prepared = prepare(job, locations, base, fresh=fresh, world=world, reporter=reporter)
    with world.defer_stop():  # from here on a request to stop waits until the session can save its state
        prepared = restore(prepared, world)
        checkpointing = claim(prepared, job, locations, least_attempt)
        shown = open_display(display, job.spec.training.iterations, prepared.done) if world.first else Display()
        prepared.recorder.show(shown, observers)
        return assemble(prepared, job, world, checkpointing, least_attempt)


def prepare(
    job: TailorPOJob,
    locations: Locations,
    base: Path | None,
    *,
    fresh: bool,
    world: World,
    reporter: TerminationReporter,
) -> Prepared:
    """Load and check everything that the document names, and write `job.yaml`, `prompts.json`, `environment.json`."""
    run, folder = job.spec, RunFolder(locations.output)
    _check_shares(run, world)
    training_prompts = list(prompts.load(run.prompts, base))
    held_out = list(prompts.load(run.evaluation.prompts, base)) if run.evaluation.prompts else training_prompts
    storage, start = None, None
    if world.first:
        folder.create()
        storage = checkpoint.open_run(locations.open(), job)
        start = None if fresh else storage.latest()
    recorder = Recorder(folder, reporter, writes=world.first)  # not earlier: the folder may be another run's
    start = _share_checkpoint(start, world)
    models.silence_libraries()
    device = models.pick_device()
    method = methods.build(run.method)
    with world.interruptible():
        reward = rewards.load(run.rewards, device)
        watched = (
            rewards.load(run.evaluation.rewards, device, "spec.evaluation.rewards") if run.evaluation.rewards else None
        )
        if method.needs_gradient:
            rewards.require_differentiable(reward, run.method.name)
        policy = models.load_policy(run, device)
    for each in (reward, watched):
        if each is not None:
            each.interruptible = world.interruptible
    policy.check_stop = world.check
    contents = {"prompts": training_prompts, "evaluation.prompts": held_out}
    check_contents(contents, policy, world)
    updater = Updater(policy, method, run, world)
    if world.first:
        if storage is not None and start is not None:
            _compare_prompts(storage.store, start, folder, training_prompts)
        files.replace(folder.job, document.dump(locations.job))
        cut = prompts.cut([*training_prompts, *held_out], policy.prompt_tokens, policy.tokenize)
        if cut.warning:
            log.warning("%s", cut.warning)
        write_json(folder.prompts, {"training": training_prompts, "evaluation": held_out, "cut": asdict(cut)})
        write_json(folder.environment, environment(device, world.size))
    return Prepared(
        prompts=training_prompts,
        held_out=held_out,
        recorder=recorder,
        storage=storage,
        start=start,
        method=method,
        reward=reward,
        watched=watched,
        policy=policy,
        updater=updater,
    )


def restore(prepared: Prepared, world: World) -> Prepared:
    """Load the newest checkpoint that fits this run. Raises `DataError` if there are some, and none does."""
    start, unfit = prepared.start, set[checkpoint.Ref]()
    while start is not None:
        try:
            prepared.updater.load(start)
            break
        except checkpoint.CorruptError as error:  # in all processes alike, since they have the same bytes
            if world.first:
                log.warning("checkpoint skipped: %s", error)
        unfit.add(start.manifest.ref)
        start = _share_checkpoint(prepared.storage.latest(unfit) if prepared.storage else None, world)
    return replace(prepared, start=start)


def claim(prepared: Prepared, job: TailorPOJob, locations: Locations, least_attempt: int) -> Checkpointing | None:
    """Fetch the history before the checkpoint, and claim an attempt, if there is anything left to do.

    Returns what writes the new attempt's checkpoints; None in all processes but the first, and if the run is complete.
    """
    start, storage, folder = prepared.start, prepared.storage, prepared.recorder.folder
    if storage is None:
        return None
    published: set[str] = set()
    if start is not None and locations.in_s3:
        published = publishing.restore(storage.store, start.attempt, start.step, folder)
    # `is_published` lists the whole storage: worth it only for a run that may have nothing left to do.
    if (
        start is not None
        and start.step == job.spec.training.iterations
        and (not locations.in_s3 or publishing.is_published(storage.store, start.attempt))
    ):
        return None
    attempt = storage.begin(start, at_least=least_attempt)
    publisher = publishing.Publisher(storage.store, attempt.number, folder, published) if locations.in_s3 else None
    return Checkpointing(attempt, prepared.recorder, job.spec.checkpoint, publisher)


def assemble(
    prepared: Prepared, job: TailorPOJob, world: World, checkpointing: Checkpointing | None, least_attempt: int
) -> Session:
    """Continue the records at the checkpoint, and build the session."""
    start, recorder, done = prepared.start, prepared.recorder, prepared.done
    number = checkpointing.attempt.number if checkpointing else start.attempt if start else least_attempt
    newest = Checkpoint(uri=start.uri, step=start.step, time=start.manifest.time) if start else None
    if checkpointing is not None:
        recorder.own(Owner.new(checkpointing.attempt.store.uri(""), number), world.stop.take_over)
    recorder.resume(number, done, start.state["totals"] if start else {}, newest)
    evaluated = world.broadcast(b"1" if recorder.has_evaluation(done) else b"0") == b"1"
    session = Session(
        job=job,
        policy=prepared.policy,
        method=prepared.method,
        updater=prepared.updater,
        reward=prepared.reward,
        watched=prepared.watched,
        prompts=prepared.prompts,
        held_out=prepared.held_out,
        recorder=recorder,
        world=world,
        checkpointing=checkpointing,
        iteration=done,
        saved_at=done,
        evaluated_at=done if evaluated else None,
    )
    recorder.message(reporting.start_message(session))
    return session


def initial_progress(job: TailorPOJob) -> Progress:
    """What is known of a run before anything is loaded."""
    return Progress(name=job.metadata.name, namespace=job.metadata.namespace, of=job.spec.training.iterations)


def _check_shares(run: Spec, world: World) -> None:
    if problem := rules.shares_problem(run, world.size):
        raise ConfigurationError(f"spec.training.promptsPerIteration: {problem}")
    if run.evaluation.every_iterations and run.evaluation.images < world.size:
        raise ConfigurationError(
            f"spec.evaluation.images: {run.evaluation.images} pictures cannot be shared by {world.size} processes: "
            f"at least {world.size}"
        )


def _compare_prompts(store: checkpoint.Store, start: checkpoint.Loaded, folder: RunFolder, now: list[str]) -> None:
    """Say how the training prompts differ from those before the checkpoint: a document names only their file."""
    data = start.state.get("data")
    digest = data.get("prompts_sha256") if isinstance(data, dict) else None
    if digest == prompts.digest(now):
        return
    before = publishing.earlier_prompts(store, start.attempt, folder, digest)
    changed = "what they were is not known" if before is None else prompts.changes(before, now)
    if changed is not None and (before is not None or digest is not None):
        log.warning(
            "the training prompts are not those of the first %d iterations: %s; training goes on with the new ones",
            start.step,
            changed,
        )


def _share_checkpoint(start: checkpoint.Loaded | None, world: World) -> checkpoint.Loaded | None:
    """In all processes the checkpoint that the first process has read and verified."""
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


def _least_attempt() -> int:
    """The operator's own count of attempts, if there is an operator."""
    text = os.environ.get("TAILORPO_ATTEMPT", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"TAILORPO_ATTEMPT: {text!r} must be a whole number, at least 1")
    return int(text)
