"""The training loop. Reads as the algorithm: roll out, score, pair, update, evaluate, checkpoint."""

import time
from pathlib import Path

from tailorpo_trainer import termination
from tailorpo_trainer.display import Kind
from tailorpo_trainer.exits import TailorPOError
from tailorpo_trainer.session import Session, beginning, finish, open_session, write_report
from tailorpo_trainer.spec import TailorPOJob
from tailorpo_trainer.stopping import Stop, StopRequested
from tailorpo_trainer.updater import check_beginning
from tailorpo_trainer.watching import Watch, watching


def run(
    job: TailorPOJob,
    output: Path,
    *,
    base: Path | None = None,
    fresh: bool = False,
    display: Kind = "auto",
    watch: Watch | None = None,
) -> None:
    """Train what the document says into `output`, going on from its newest checkpoint unless `fresh`.

    Args:
        base: folder that relative paths in the document start from; default the current one.
        watch: how others look on; default nobody.
    Raises:
        TailorPOError: with the exit code that tells why; a checkpoint is written first where one can be.
    """
    termination.begin(beginning(job))
    with Stop().listening() as stop, watching(output, watch or Watch()) as observers:
        try:
            to_the_end(open_session(job, output, base, fresh, display, stop, observers))
        except BaseException as error:
            termination.last_word(error)
            raise


def to_the_end(session: Session) -> None:
    """Train and write the result, or end with an error that says after which iteration."""
    try:
        train(session)
        finish(session)
    except StopRequested:
        session.checkpoint()
        error = session.stop.error(f"after iteration {session.iteration} of {session.iterations}")
        session.record.failed(error)
        write_report(session)
        raise error from None
    except TailorPOError as cause:
        session.checkpoint()
        failure = type(cause)(f"{cause} (in iteration {session.iteration + 1})")
        session.record.failed(failure)
        write_report(session)
        raise failure from None
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
    with session.updater.averaged():
        measured = session.measure()
    session.record.evaluation(session.iteration, measured, session.watched_names, time.perf_counter() - since)
