"""The training loop. Reads as the algorithm: roll out, score, pair, update, evaluate, checkpoint."""

import time
from pathlib import Path

from tailorpo_trainer import distributed
from tailorpo_trainer.display import Kind
from tailorpo_trainer.exits import TailorPOError
from tailorpo_trainer.session import Session, finish, open_session, write_report
from tailorpo_trainer.spec import TailorPOJob
from tailorpo_trainer.stopping import Stop, StopRequested
from tailorpo_trainer.updater import check_beginning
from tailorpo_trainer.watchdog import watching


def run(
    job: TailorPOJob, output: Path, *, base: Path | None = None, fresh: bool = False, display: Kind = "auto"
) -> None:
    """Train what the document says into `output`, going on from its newest checkpoint unless `fresh`.

    Args:
        base: folder that relative paths in the document start from; default the current one.
    Raises:
        TailorPOError: with the exit code that tells why; a checkpoint is written first where one can be.
    """
    policy = job.spec.run_policy
    with (
        Stop().listening() as stop,
        distributed.join(stop, policy.rendezvous_timeout_seconds, policy.stall_timeout_seconds) as world,
        watching(policy.stall_timeout_seconds) as world.beat,
    ):
        with world.together(), world.held():  # a wish to stop waits until there is something that could be saved
            session = open_session(job, output, base, fresh, display, world)
        try:
            with world.together():
                train(session)
            finish(session)
            world.barrier()
        except StopRequested:
            session.checkpoint()
            error = stop.error(f"after iteration {session.iteration} of {session.iterations}")
            session.record.progress("Stopped", str(error))
            write_report(session)
            world.barrier()
            raise error from None
        except TailorPOError as error:
            session.checkpoint()
            session.record.failed(session.iteration + 1, error)
            write_report(session)
            world.barrier()
            raise type(error)(f"{error} (in iteration {session.iteration + 1})") from None
        finally:
            session.display.close()


def train(session: Session) -> None:
    """All iterations that are left. Between two rounds of the loop the session's state is whole."""
    while True:
        if session.evaluation_due():
            evaluate(session)
        if session.checkpoint_due():
            session.checkpoint()
        if session.iteration == session.iterations:
            return
        phases, work = session.record.phases, session.work()
        with phases("rollout"):
            scene = session.scene()
            rows = session.method.rows(scene, session.roll_out(scene))
        with phases("update"):
            facts = session.updater.iterate(rows, scene.text)
        if session.is_beginning():
            check_beginning(facts, scene.noise.size, exact=session.exact)
        session.iteration += 1
        with session.world.held():
            scene.score.pool(session.world)
            done = session.world.total(session.work(since=work))
        session.record.iteration(session.iteration, scene.score, facts, done)


def evaluate(session: Session) -> None:
    """Measure the policy (its average, where one is kept) on held-out noise and prompts."""
    since = time.perf_counter()
    with session.updater.averaged():
        measured = session.measure()
    session.evaluated_at = session.iteration
    session.record.evaluation(session.iteration, measured, session.watched_names, time.perf_counter() - since)
