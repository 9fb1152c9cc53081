"""Start the processes of one machine or pod, and report the end that explains those of the others.

torchrun turns every child's exit code into 1. So its agent (`torch.distributed.launcher`) runs in this process: one
attempt, static rendezvous among pods, and as long a wait from SIGTERM to SIGKILL as a checkpoint may take.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tailorpo_trainer.distributed.watchdog import LAUNCHER
from tailorpo_trainer.errors import SIGKILLED, ExitCode, NoProgressError, StalledError, cause_order, describe_exit
from tailorpo_trainer.untrusted import read_json

if TYPE_CHECKING:
    from tailorpo_trainer.spec.job import RunPolicy
    from tailorpo_trainer.spec.progress import Progress

log = logging.getLogger(__name__)

REPORTS = "TAILORPO_REPORTS"
"""Folder where each rank leaves its termination message, `RANK.json`, for the launcher to choose from."""

MARGIN_SECONDS = 10
"""Of the grace period, left for the launcher itself."""


@dataclass(frozen=True)
class WorldLayout:
    """Where the processes of a run are: `processes` on each of `nodes` machines, of which this is `node_rank`."""

    processes: int
    nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29400

    @property
    def size(self) -> int:
        return self.processes * self.nodes


def launch(
    arguments: Sequence[str], layout: WorldLayout, run_policy: "RunPolicy", progress: Path | None = None
) -> tuple[int, int, dict[str, Any]]:
    """Run `tailorpo run ARGUMENTS` in every process; returns the decisive rank, exit code and termination message.

    progress: the `progress.json` of the run, which a first rank that was killed leaves as if it were still running.

    Raises `StalledError` if the machines do not find each other in time.
    """
    if layout.nodes > 1:
        _wait_for_address(layout.master_addr, run_policy.rendezvous_timeout_seconds)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks log their errors themselves
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from tailorpo_trainer.distributed.torch_errors import first_sentence, is_lost_peer
    from tailorpo_trainer.distributed.world import announce_failure

    with tempfile.TemporaryDirectory(prefix="tailorpo-") as folder, _environment(layout, folder):
        exit_codes: dict[int, int] = {}
        config = _config(layout, run_policy, folder)
        try:
            with _interruptible(SignalException):
                elastic_launch(config, sys.executable)("-m", "tailorpo_trainer", *arguments)
        except ChildFailedError as error:
            exit_codes = {rank: _shell_exit_code(failure.exitcode) for rank, failure in error.failures.items()}
        except SignalException:
            exit_codes = {layout.node_rank * layout.processes: ExitCode.STOPPED}
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise StalledError(
                f"the {layout.nodes} nodes did not meet at {layout.master_addr}:{layout.master_port} within "
                f"{run_policy.rendezvous_timeout_seconds} s (spec.runPolicy.rendezvousTimeoutSeconds): "
                f"{first_sentence(error)}"
            ) from None
        messages = _read_messages(Path(folder))
        rank, code, message = decide(exit_codes, messages)
        if hung := hung_ranks(exit_codes, messages):
            note = f"rank {', '.join(map(str, hung))} did not stop when asked to, and was killed: it hung"
            log.error("%s", note)
            message = _with_note(message, note)
            messages = messages | {rank: message}
        if layout.nodes > 1 and code != _exit_code(message):  # it announced no end, and processes elsewhere may wait
            announce_failure(layout.master_addr, layout.master_port, rank, f"it {describe_exit(code)}")
        last = _write_message(rank, code, messages)
        if code and progress is not None and layout.node_rank == 0:
            _end_progress(progress, last)
        return rank, code, message


def _config(layout: WorldLayout, run_policy: "RunPolicy", folder: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    single_node = layout.nodes == 1
    return LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=layout.processes,
        run_id="tailorpo",
        # On one machine the store takes any free port; several machines must agree on one.
        rdzv_backend="c10d" if single_node else "static",
        rdzv_endpoint="localhost:0" if single_node else f"{layout.master_addr}:{layout.master_port}",
        rdzv_configs={"timeout": run_policy.rendezvous_timeout_seconds}
        | ({} if single_node else {"rank": layout.node_rank}),
        local_addr="localhost" if single_node else None,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.path.join(folder, "torch")),
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        shutdown_timeout=max(1, run_policy.termination_grace_period_seconds - MARGIN_SECONDS),
    )


@contextmanager
def _environment(layout: WorldLayout, folder: str) -> Iterator[None]:
    """The environment variables of the ranks."""
    original = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // layout.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ |= {REPORTS: folder, LAUNCHER: str(os.getpid())}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(original)


@contextmanager
def _interruptible(exception: Callable[..., Exception]) -> Iterator[None]:
    """The first Ctrl-C asks the ranks to stop. A second one ends this process; the ranks notice that, and end."""
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            os._exit(ExitCode.INTERRUPTED)
        interrupted = True
        raise exception("interrupted", sigval=signal.SIGINT)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _wait_for_address(host: str, seconds: float) -> None:
    """Wait until a name has an address: a headless Service resolves a pod's name a little after the pod has begun."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StalledError(
                    f"{host} has no address after {seconds:g} s (spec.runPolicy.rendezvousTimeoutSeconds): "
                    f"{error.strerror or error}"
                ) from None
            time.sleep(min(1.0, seconds / 10))


def _read_messages(folder: Path) -> dict[int, dict[str, Any]]:
    """The termination messages of the ranks that left one."""
    from tailorpo_trainer.spec.progress import MAX_BYTES  # not above: `--help` imports this module, but no pydantic

    messages = {}
    for path in folder.glob("*.json"):
        try:
            message = read_json(path, MAX_BYTES)
        except (OSError, ValueError):
            continue
        if path.stem.isdecimal() and isinstance(message, dict):
            messages[int(path.stem)] = message
    return messages


def decide(exit_codes: Mapping[int, int], messages: Mapping[int, dict[str, Any]]) -> tuple[int, int, dict[str, Any]]:
    """The rank whose end explains the others', its exit code and its message, by `tailorpo_trainer.errors.END_CAUSES`.

    Args:
        exit_codes: of the ranks that the agent saw end in failure.
        messages: the termination messages of the ranks that left one.
    """
    stated = {rank: _exit_code(message) for rank, message in messages.items()}
    # A message without an error may be that of a process that was killed, whose exit code only the agent knows.
    codes = dict(exit_codes) | {rank: code for rank, code in stated.items() if code}
    for rank in hung_ranks(exit_codes, messages):
        del codes[rank]
    if not codes:
        return 0, ExitCode.DONE, {}
    rank = min(codes, key=lambda rank: (cause_order(codes[rank]), rank))
    return rank, codes[rank], messages.get(rank, {})


def hung_ranks(exit_codes: Mapping[int, int], messages: Mapping[int, dict[str, Any]]) -> list[int]:
    """The ranks that the agent had to kill after the watchdog of another one had ended that one.

    A rank that the kernel kills is lost at once for its peers, which say so; nobody waits for it until a watchdog does.
    """
    waited = any(_error(message).get("class") == NoProgressError.__name__ for message in messages.values())
    silent = (rank for rank, code in exit_codes.items() if code == SIGKILLED and not _exit_code(messages.get(rank, {})))
    return sorted(silent) if waited else []


def _with_note(message: Mapping[str, Any], note: str) -> dict[str, Any]:
    error = _error(message)
    return {**message, "error": {**error, "text": f"{error.get('text', '')}; {note}"}}


def _end_progress(file: Path, last: "Progress") -> None:
    """Write the end to `progress.json`, if it is this attempt's and says that the run goes on."""
    from tailorpo_trainer.errors import TailorPOError
    from tailorpo_trainer.results.run_folder import RESULT_BYTES, write_json
    from tailorpo_trainer.spec.progress import Progress

    try:
        found = Progress.model_validate(read_json(file, RESULT_BYTES))
        if found.phase == "Running" and (found.name, found.attempt) == (last.name, last.attempt):
            write_json(file, last.to_dict())
    except (OSError, ValueError, TailorPOError) as error:
        log.debug("no end in %s: %s", file, error)


def _write_message(rank: int, code: int, messages: Mapping[int, dict[str, Any]]) -> "Progress":
    """Write the pod's termination message: the progress of its first rank, and why the decisive rank ended."""
    from pydantic import ValidationError

    from tailorpo_trainer.spec.progress import Error, Progress
    from tailorpo_trainer.telemetry import termination

    def progress(of: int) -> Progress:
        try:
            return Progress.model_validate(messages.get(of, {}))
        except ValidationError:
            return Progress()

    last, error = progress(min(messages, default=rank)), progress(rank).error
    if code == ExitCode.DONE:
        last = last.replace(phase="Succeeded", eta_seconds=None, error=None)
        termination.write(last)
        return last
    if error is None or error.exit_code != code:
        text = f"rank {rank} {describe_exit(code)} and left no message"
        error = Error(class_="ProcessEnded", text=text, exit_code=code)
    last = last.ended_by(error.model_copy(update={"rank": rank}))
    termination.write(last)
    return last


def _error(message: Mapping[str, Any]) -> dict[str, Any]:
    error = message.get("error")
    return error if isinstance(error, dict) else {}


def _exit_code(message: Mapping[str, Any]) -> int:
    return int(_error(message).get("exitCode", 0))


def _shell_exit_code(code: int) -> int:
    """A process' exit status as a shell reports it: 128 + the number of the signal that ended it."""
    return 128 - code if code < 0 else code
