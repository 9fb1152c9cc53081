"""The training loop. Reads as the algorithm: roll out, score, pair, update, evaluate, checkpoint."""

import time
from contextlib import suppress
from pathlib import Path

from tailorpo_trainer.display import Kind
from tailorpo_trainer.exits import TailorPOError
from tailorpo_trainer.noise import Purpose, seed_globally
from tailorpo_trainer.session import Session, finish, open_session, write_report
from tailorpo_trainer.spec import TailorPOJob
from tailorpo_trainer.stopping import Stop, StopRequested
from tailorpo_trainer.updater import check_beginning


def run(
    job: TailorPOJob,
    output: Path | None = None,
    *,
    base: Path | None = None,
    fresh: bool = False,
    display: Kind = "auto",
) -> None:
    """Train what the document says, going on from its newest checkpoint unless `fresh`.

    Args:
        output: folder of results and checkpoints; default as `places.choose` has it.
        base: folder that relative paths in the document start from; default the current one.
    Raises:
        TailorPOError: with the exit code that tells why; a checkpoint is written first where one can be.
    """
    with Stop().listening() as stop:
        session = open_session(job, output, base, fresh, display, stop)
        try:
            train(session)
            finish(session)
        except StopRequested:
            session.checkpoint()
            session.settle()
            error = stop.error(f"after iteration {session.iteration} of {session.iterations}")
            session.record.progress("Stopped", str(error))
            write_report(session)
            raise error from None
        except TailorPOError as error:
            error = session.rescue(error)
            with suppress(TailorPOError, OSError):  # on a full disk there are no last words, and the cause counts
                session.record.failed(session.iteration + 1, error)
                write_report(session)
            raise type(error)(f"{error} (in iteration {session.iteration + 1})") from None
        except Exception:
            with suppress(Exception):  # a bug must not lose a checkpoint that is on its way
                session.settle()
            raise
        finally:
            session.display.close()


def train(session: Session) -> None:
    """All iterations that are left. Between two rounds of the loop the session's state is whole."""
    while True:
        if session.evaluation_due():
            evaluate(session)
        if session.checkpoint_due():
            session.checkpoint()
        session.follow()
        if session.iteration == session.iterations:
            return
        seed_globally(session.run.training.seed, Purpose.TRAINING, session.iteration)
        phases, work = session.record.phases, session.work()
        with phases("rollout"):
            scene = session.scene()
            drawn = session.roll_out(scene)
            rows = session.method.rows(scene, drawn)
        with phases("update"):
            facts = session.updater.iterate(rows, scene.text, session.stop.check)
        if session.is_beginning():
            check_beginning(facts, scene.noise.size, exact=session.exact)
        session.iteration += 1
        session.record.iteration(session.iteration, scene.score, facts, session.work(since=work))


def evaluate(session: Session) -> None:
    """Measure the policy (its average, where one is kept) on held-out noise and prompts."""
    since = time.perf_counter()
    seed_globally(session.run.training.seed, Purpose.EVALUATION, session.iteration)
    with session.updater.averaged():
        measured = session.measure()
    session.record.evaluation(session.iteration, measured, session.watched_names, time.perf_counter() - since)
