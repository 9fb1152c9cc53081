"""The training loop. Reads as the algorithm: roll out, score, pair, update, evaluate, checkpoint."""

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from tailorpo_trainer.diffusion.noise import Purpose, seed_globally
from tailorpo_trainer.distributed.signals import Stop, StopRequested
from tailorpo_trainer.distributed.watchdog import watching
from tailorpo_trainer.distributed.world import join
from tailorpo_trainer.errors import ExitCode, StalledError, TailorPOError
from tailorpo_trainer.results import locations
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.telemetry import termination
from tailorpo_trainer.telemetry.display import Kind
from tailorpo_trainer.telemetry.exporters import TelemetryOptions, open_exporters
from tailorpo_trainer.training.session import Session
from tailorpo_trainer.training.setup import beginning, open_session
from tailorpo_trainer.training.updater import check_beginning


def run(
    job: TailorPOJob,
    output: Path | None = None,
    *,
    base: Path | None = None,
    fresh: bool = False,
    display: Kind = "auto",
    watch: TelemetryOptions | None = None,
) -> None:
    """Train what the document says, going on from its newest checkpoint unless `fresh`.

    Args:
        output: folder of results and checkpoints; default as `places.choose` has it.
        base: folder that relative paths in the document start from; default the current one.
        watch: how others look on; default nobody.
    Raises:
        TailorPOError: with the exit code that tells why; a checkpoint is written first where one can be.
    """
    termination.begin(beginning(job))
    policy = job.spec.run_policy
    with (
        Stop().listening() as stop,
        join(stop, policy.rendezvous_timeout_seconds, policy.stall_timeout_seconds) as world,
        watching(policy.stall_timeout_seconds, leave) as world.beat,
        ExitStack() as stack,
    ):
        try:
            with world.end_together(), world.defer_stop():  # until there is something that can be saved
                place = locations.choose(job, output, base)
                observers = stack.enter_context(open_exporters(place.output, watch)) if watch and world.first else []
                session = open_session(job, place, base, fresh, display, world, observers)
            to_the_end(session)
        except BaseException as error:
            termination.last_word(error)
            raise


def to_the_end(session: Session) -> None:
    """Train and write the result, or end with an error that says after which iteration."""
    world = session.world
    try:
        with world.end_together():
            train(session)
        session.finish()
        world.barrier()
    except StopRequested:
        end(session, session.stopped())
    except TailorPOError as cause:
        error = session.rescue(cause)
        done = session.iteration == session.iterations
        where = "after the last iteration" if done else f"in iteration {session.iteration + 1}"
        end(session, type(error)(f"{error} ({where})"))
    except Exception:
        with suppress(Exception):  # a bug must not lose a checkpoint that is on its way
            session.settle()
        raise
    finally:
        session.display.close()


def end(session: Session, error: TailorPOError) -> NoReturn:
    """Say why, wait until all processes have, and leave."""
    session.last_words(error)
    session.world.barrier()
    raise error


def leave(code: int) -> None:
    """End at once, from the watchdog's thread: with a last word, but not to a disk that may be what hangs."""
    why = "no progress for too long" if code == ExitCode.STALLED else "the launcher of this process is gone"
    termination.write(termination.known().ended(StalledError(f"{why}: see its log"), code))
    os._exit(code)


def train(session: Session) -> None:
    """All iterations that are left. Between two rounds of the loop the session's state is whole."""
    while True:
        if session.evaluation_due():
            evaluate(session)
        if session.checkpoint_due():
            session.checkpoint()
        session.check_saving()
        if session.iteration == session.iterations:
            return
        seed_globally(session.run.training.seed, Purpose.TRAINING, session.iteration, session.world.rank)
        phases, work = session.record.phases, session.work()
        with phases("rollout"):
            scene = session.scene()
            rows = session.method.rows(scene, session.roll_out(scene))
        with phases("update"):
            facts = session.updater.iterate(rows, scene.text)
        if session.is_beginning():
            check_beginning(facts, scene.noise.size, exact=session.exact)
        session.iteration += 1
        with session.world.defer_stop():
            scene.score.all_reduce(session.world)
            done = session.world.total(session.work(since=work))
        session.record.iteration(session.iteration, scene.score, facts, done)


def evaluate(session: Session) -> None:
    """Measure the policy (its average, where one is kept) on held-out noise and prompts."""
    since = time.perf_counter()
    seed_globally(session.run.training.seed, Purpose.EVALUATION, session.iteration, session.world.rank)
    with session.updater.averaged():
        measured = session.measure()
    session.evaluated_at = session.iteration
    session.record.evaluation(session.iteration, measured, session.watched_names, time.perf_counter() - since)
