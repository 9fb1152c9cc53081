"""The messages and files at the start and the end of a run: its result, its report, and why it ended."""

from contextlib import suppress

from tailorpo_trainer import estimate, files, models, report
from tailorpo_trainer.distributed.signals import StopRequested
from tailorpo_trainer.errors import TailorPOError
from tailorpo_trainer.results.run_folder import write_json
from tailorpo_trainer.training.session import Session


def start_message(session: Session) -> str:
    """One sentence on the run that starts, for a person."""
    run, name, done = session.run, session.job.metadata.name, session.iteration
    if done == session.iterations:
        return f"{name}: complete after {done} iterations, nothing to do"
    policy = session.policy
    weights = sum(parameter.numel() for parameter in policy.parameters)
    rewards = " + ".join(f"{reward.weight:g} x {reward.name}" for reward in run.rewards)
    processes = f"{session.world.size} processes, " if session.world.size > 1 else ""
    resumed = f", going on after iteration {done}" if done else ""
    return (
        f"{name}: {run.method.name} on {run.model.name} for {rewards}; "
        f"{weights:,} adapter weights, {session.iterations} iterations of "
        f"{run.training.prompts_per_iteration * run.training.samples_per_prompt} samples on {processes}{policy.device} "
        f"in {str(policy.dtype).removeprefix('torch.')}{resumed}"
    )


def write_result(session: Session) -> None:
    """Write the result: the adapter as diffusers loads it, and the report.

    Raises if it cannot be kept, and `StopRequested` if another run has taken over.
    """
    if not session.world.first:
        return
    recorder, checkpointing = session.recorder, session.checkpointing
    if checkpointing is not None and checkpointing.is_taken_over():
        raise StopRequested
    adapter = recorder.folder.adapter
    with session.updater.averaged():
        models.save_adapter(session.policy, adapter)
    write_json(recorder.folder.cost, estimate.row_costs(session.run))
    session.wait_for_checkpoints()
    recorder.succeeded(checkpointing.adapter_uri(recorder.folder) if checkpointing else str(adapter))
    recorder.message(f"adapter: {adapter}")
    _write_report(session, strict=True)


def write_failure(session: Session, error: TailorPOError) -> None:
    """Record why the run ends, and write the report of what there is."""
    # A full disk refuses them, and `error` is the more important one.
    with files.one_try(), suppress(TailorPOError, OSError):
        session.recorder.failed(error, session.world.peer_exit_code)
        _write_report(session)


def _write_report(session: Session, strict: bool = False) -> None:
    """Write the report of the run so far, and publish the results. strict: raise if they cannot be published."""
    if not session.recorder.owns():
        return
    session.recorder.message(f"report: {report.write(session.recorder.folder.root)}")
    if session.checkpointing is not None:
        session.checkpointing.publish(strict)
