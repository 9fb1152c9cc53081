"""Start the processes of one machine or pod, and pass on why the first of them ended.

torchrun turns every child's exit code into 1. So its agent (`torch.distributed.launcher`) runs in this process: one
attempt, static rendezvous between pods, and as long a wait between SIGTERM and SIGKILL as a checkpoint may take.
"""

import json
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
from tailorpo_trainer.errors import ExitCode, StalledError

if TYPE_CHECKING:
    from tailorpo_trainer.spec.job import RunPolicy

REPORTS = "TAILORPO_REPORTS"
"""Folder where each rank leaves its termination message, `RANK.json`, for the launcher to choose from."""

MARGIN_SECONDS = 10
"""Of the grace period, left for the launcher itself."""

DECISIVE = (
    ExitCode.CONFIGURATION,
    ExitCode.BAD_DATA,
    ExitCode.NOT_FINITE,
    137,  # killed: by the kernel for its memory, most likely
    ExitCode.OUT_OF_RESOURCES,
    ExitCode.INTERNAL,
    ExitCode.UNAVAILABLE,
    ExitCode.STALLED,
    ExitCode.INTERRUPTED,
    ExitCode.STOPPED,
)
"""Which of several exit codes tells the cause: a failure makes peers say 74, and who is stopped for it says 75."""


@dataclass(frozen=True)
class Gang:
    """The processes of a run: `processes` on each of `nodes` machines, of which this is number `node_rank`."""

    processes: int
    nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29400

    @property
    def size(self) -> int:
        return self.processes * self.nodes


def launch(arguments: Sequence[str], gang: Gang, policy: "RunPolicy") -> tuple[int, int, dict[str, Any]]:
    """Run `tailorpo run ARGUMENTS` in every process; returns the decisive rank, exit code and termination message.

    Raises `StalledError` if the machines do not find each other in time.
    """
    if gang.nodes > 1:
        _await_name(gang.master_addr, policy.rendezvous_timeout_seconds)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said it themselves
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from tailorpo_trainer.distributed.world import reason, tell

    with tempfile.TemporaryDirectory(prefix="tailorpo-") as folder, _environment(gang, folder):
        failed: dict[int, int] = {}
        config = _config(gang, policy, folder)
        try:
            with _interruptible(SignalException):
                elastic_launch(config, sys.executable)("-m", "tailorpo_trainer", *arguments)
        except ChildFailedError as error:
            failed = {rank: _as_shell(failure.exitcode) for rank, failure in error.failures.items()}
        except SignalException:
            failed = {gang.node_rank * gang.processes: ExitCode.STOPPED}
        except RuntimeError as error:  # the store's: torch raises several of its subclasses
            raise StalledError(
                f"the {gang.nodes} nodes did not meet at {gang.master_addr}:{gang.master_port} within "
                f"{policy.rendezvous_timeout_seconds} s (spec.runPolicy.rendezvousTimeoutSeconds): "
                f"{reason(error)}"
            ) from None
        messages = _read(Path(folder))
        rank, code, message = _decide(failed, messages)
        if gang.nodes > 1 and code != _code(message):  # it died without a word, and others may wait for it
            tell(gang.master_addr, gang.master_port, rank, f"it {_how(code)}")
        _tell(rank, code, messages)
        return rank, code, message


def _config(gang: Gang, policy: "RunPolicy", folder: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    alone = gang.nodes == 1
    return LaunchConfig(
        min_nodes=gang.nodes,
        max_nodes=gang.nodes,
        nproc_per_node=gang.processes,
        run_id="tailorpo",
        # Alone, the store takes any free port; between machines all must know it.
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else f"{gang.master_addr}:{gang.master_port}",
        rdzv_configs={"timeout": policy.rendezvous_timeout_seconds} | ({} if alone else {"rank": gang.node_rank}),
        local_addr="localhost" if alone else None,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.path.join(folder, "torch")),
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        shutdown_timeout=max(1, policy.termination_grace_period_seconds - MARGIN_SECONDS),
    )


@contextmanager
def _environment(gang: Gang, folder: str) -> Iterator[None]:
    """What the ranks find in their environment."""
    given = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // gang.processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ |= {REPORTS: folder, LAUNCHER: str(os.getpid())}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(given)


@contextmanager
def _interruptible(exception: Callable[..., Exception]) -> Iterator[None]:
    """The first Ctrl-C asks the ranks to stop, a second one leaves; they notice that, and end."""
    asked = False

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(ExitCode.INTERRUPTED)
        asked = True
        raise exception("interrupted", sigval=signal.SIGINT)

    before = signal.signal(signal.SIGINT, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _await_name(host: str, seconds: float) -> None:
    """Until a name has an address: a headless Service knows a pod a little after it has begun."""
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


def _read(folder: Path) -> dict[int, dict[str, Any]]:
    """The termination messages of the ranks that left one."""
    found = {}
    for path in folder.glob("*.json"):
        try:
            message = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if path.stem.isdecimal() and isinstance(message, dict):
            found[int(path.stem)] = message
    return found


def _decide(failed: Mapping[int, int], messages: Mapping[int, dict[str, Any]]) -> tuple[int, int, dict[str, Any]]:
    """The rank whose end explains the others', its exit code and its message."""
    said = {rank: _code(message) for rank, message in messages.items()}
    # A message without an error may be that of a process that was killed, and how is known from outside alone.
    codes = dict(failed) | {rank: code for rank, code in said.items() if code}
    if not codes:
        return 0, ExitCode.DONE, {}
    place = {int(code): number for number, code in enumerate(DECISIVE)}

    def order(rank: int) -> tuple[int, int]:
        code = codes[rank]
        other = place[137] if code > 128 else place[ExitCode.INTERNAL]
        return place.get(code, len(place) if code == 0 else other), rank

    rank = min(codes, key=order)
    return rank, codes[rank], messages.get(rank, {})


def _tell(rank: int, code: int, messages: Mapping[int, dict[str, Any]]) -> None:
    """The pod's own last word: how far its first rank was, which knows most, and why the decisive one ended."""
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
        termination.write(last.replace(phase="Succeeded", eta_seconds=None, error=None))
        return
    if error is None or error.exit_code != code:
        error = Error(class_="ProcessEnded", text=f"rank {rank} {_how(code)} and said nothing", exit_code=code)
    termination.write(last.ended_by(error.model_copy(update={"rank": rank})))


def _how(code: int) -> str:
    return f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"


def _code(message: Mapping[str, Any]) -> int:
    error = message.get("error")
    return int(error.get("exitCode", 0)) if isinstance(error, dict) else 0


def _as_shell(code: int) -> int:
    """A process' exit status as a shell says it: 128 + the number of the signal that ended it."""
    return 128 - code if code < 0 else code
