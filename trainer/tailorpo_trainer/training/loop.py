"""The training loop. Reads as the algorithm: roll out, score, pair, update, evaluate, checkpoint."""

import os
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from tailorpo_trainer import estimate
from tailorpo_trainer.diffusion.noise import Purpose, seed_globally
from tailorpo_trainer.distributed.signals import Stop, StopRequested
from tailorpo_trainer.distributed.watchdog import LOADING_SECONDS, watching
from tailorpo_trainer.distributed.world import join
from tailorpo_trainer.errors import ExitCode, NoProgressError, StalledError, TailorPOError
from tailorpo_trainer.results import locations
from tailorpo_trainer.spec.job import TailorPOJob
from tailorpo_trainer.telemetry.display import Kind
from tailorpo_trainer.telemetry.exporters import TelemetryOptions, open_exporters
from tailorpo_trainer.telemetry.termination import TerminationReporter
from tailorpo_trainer.training import reporting
from tailorpo_trainer.training.agreement import check_documents
from tailorpo_trainer.training.session import Session
from tailorpo_trainer.training.setup import initial_progress, open_session
from tailorpo_trainer.training.updater import check_first_update


def train(session: Session) -> None:
    """All iterations that are left. Between two rounds of the loop the session's state is complete."""
    while True:
        if session.evaluation_due():
            evaluate(session)
        if session.checkpoint_due():
            session.checkpoint()
        session.check_checkpoints()
        if session.iteration == session.iterations:
            return
        seed_globally(session.run.training.seed, Purpose.TRAINING, session.iteration, session.world.rank)
        phases, work = session.recorder.phases, session.work()
        with phases("rollout"):
            context = session.rollout_context()
            rows = session.method.rows(context, session.roll_out(context))
        with phases("update"):
            facts = session.updater.iterate(rows, context.text)
        if session.is_first_update():
            check_first_update(facts, context.noise.size, exact=session.exact)
            facts.facts["logit"].zero_()  # else rounding noise would count as the policy's preference
        session.iteration += 1
        with session.world.defer_stop():
            context.score.all_reduce(session.world)
            work_done = session.world.total(session.work(since=work))
        session.recorder.iteration(session.iteration, context.score, facts, work_done)


def evaluate(session: Session) -> None:
    """Measure the policy (its average, where one is kept) on held-out noise and prompts."""
    since = time.perf_counter()
    seed_globally(session.run.training.seed, Purpose.EVALUATION, session.iteration, session.world.rank)
    with session.updater.averaged():
        measured = session.measure()
    session.evaluated_at = session.iteration
    session.recorder.evaluation(session.iteration, measured, session.watched_names, time.perf_counter() - since)


def run(
    job: TailorPOJob,
    output: Path | None = None,
    *,
    base: Path | None = None,
    fresh: bool = False,
    display: Kind = "auto",
    telemetry: TelemetryOptions | None = None,
    reporter: TerminationReporter | None = None,
) -> None:
    """Train what the document says, going on from its newest checkpoint unless `fresh`.

    Args:
        output: folder of results and checkpoints; default as `locations.choose` has it.
        base: folder that relative paths in the document start from; default the current one.
        telemetry: which exporters to open; default none.
        reporter: of this process; default a new one.
    Raises:
        TailorPOError: with the exit code of its cause, after writing a checkpoint where that is possible.
    """
    reporter = reporter or TerminationReporter()
    reporter.report(initial_progress(job))
    run_policy = job.spec.run_policy
    with (
        Stop().listening() as stop,
        join(stop, run_policy.rendezvous_timeout_seconds, run_policy.stall_timeout_seconds) as world,
        watching(run_policy.stall_timeout_seconds, partial(leave, reporter), loading=LOADING_SECONDS) as beat,
        ExitStack() as stack,
    ):
        world.beat = beat
        try:
            with world.end_together():
                check_documents(job, world)
                chosen = locations.choose(job, output, base)
                exporters = open_exporters(
                    chosen.output, telemetry if world.first else None, reporter, job.spec,
                    costs=partial(estimate.row_costs, job.spec), processes=world.size,
                )  # fmt: skip
                session = open_session(
                    job, chosen, base, fresh=fresh, world=world, reporter=reporter,
                    display=display, observers=stack.enter_context(exporters),
                )  # fmt: skip
            beat.begin()
            train_and_report(session)
        except StopRequested:  # before the session was open
            error = stop.error(None, job.spec.training.iterations)
            reporter.end(error)
            raise error from None
        except BaseException as error:
            reporter.end(error)
            raise


def train_and_report(session: Session) -> None:
    """Train and write the result, or save the state and end with an error that says after which iteration."""
    world = session.world
    try:
        with world.end_together():
            train(session)
        reporting.write_result(session)
        world.barrier()
    except StopRequested:
        # A run whose state could not be saved ends with that error: a stop promises a checkpoint.
        unsaved = session.save_before_end()
        end(session, unsaved or world.stop.error(session.iteration, session.iterations))
    except TailorPOError as cause:
        text, unsaved = str(cause), session.save_before_end()
        if unsaved is not None and unsaved is not cause:
            text += f"; nor could the last checkpoint be written: {unsaved}"
        if session.recorder.incomplete:
            where = f"recording iteration {session.iteration}"
        elif session.iteration == session.iterations:
            where = "after the last iteration"
        else:
            where = f"in iteration {session.iteration + 1}"
        end(session, type(cause)(f"{text} ({where})"))
    except Exception:
        with suppress(Exception):  # a bug must not lose a checkpoint that is being written
            session.wait_for_checkpoints()
        raise
    finally:
        session.recorder.display.close()


def end(session: Session, error: TailorPOError) -> NoReturn:
    """Record the error, wait until all processes have done so, and raise it."""
    reporting.write_failure(session, error)
    session.world.barrier()
    raise error


def leave(reporter: TerminationReporter, code: int) -> None:
    """End the process at once, from the watchdog's thread: the disk of `progress.json` may be what hangs."""
    if code == ExitCode.STALLED:
        reporter.abort(NoProgressError("no progress for too long: see its log"), code)
    else:
        reporter.abort(StalledError("the launcher of this process is gone: see its log"), code)
    os._exit(code)
