"""Why a process ended: one exit code, one meaning, and one order of which end explains the others.

The numbers are those of BSD's `sysexits.h` where it has the notion, so that `EX_CONFIG` and the like are recognised.
The launcher and the operator both decide with `END_CAUSES`; the tables of `docs/` are generated from it. No torch.
"""

import errno
import signal
from dataclasses import dataclass
from enum import IntEnum, StrEnum

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a system whose disk, quota or largest file is full."""

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a system that does not allow a file to be written or read."""

WRONG_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that cannot be a file or a folder."""

LOST = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT, errno.EREMOTEIO)
"""Errors of a disk that fails, or of a network file system that is away."""

OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch writes into a RuntimeError that has no class of its own: its CPU allocator, CUDA and NCCL, cuBLAS."""


class ExitCode(IntEnum):
    """What each exit status of `tailorpo` and of a trainer pod means."""

    DONE = 0
    USAGE = 2
    BAD_DATA = 65
    UNAVAILABLE = 69
    INTERNAL = 70
    OUT_OF_RESOURCES = 71
    STALLED = 74
    STOPPED = 75
    NOT_FINITE = 76
    CONFIGURATION = 78
    INTERRUPTED = 130


SIGKILLED, SIGTERMED = 128 + signal.SIGKILL, 128 + signal.SIGTERM
SIGNALS = range(129, 129 + 64)
"""Exit codes of processes that a signal ended: 128 + its number, as a shell reports it."""


class Verdict(StrEnum):
    """What follows from the end of an attempt."""

    DONE = "done"
    FATAL = "fatal"  # another attempt would end in the same way
    COUNTED = "counted"  # tried again, and counted against backoffLimit
    FREE = "free"  # ended by the cluster or by a person: tried again, and not counted
    SUSPENDED = "suspended"  # begins again when runPolicy.suspend is false


@dataclass(frozen=True)
class EndCause:
    """How a process may end. exit_code: None in a row for all codes, or all signals, that have no row of their own."""

    exit_code: int | None
    reason: str
    verdict: Verdict
    meaning: str
    what_to_do: str = ""


OTHER_SIGNAL = EndCause(
    None,
    "Killed",
    Verdict.COUNTED,
    "killed by another signal, such as SIGSEGV (139) or SIGABRT (134); the code is 128 + the signal's number",
    "read the logs: most likely it is a fault of a native library",
)
OTHER_CODE = EndCause(
    None,
    "Error",
    Verdict.COUNTED,
    "an end that states no cause, such as 1",
    "read the message: it has the log's last lines",
)

END_CAUSES = (
    EndCause(
        ExitCode.CONFIGURATION,
        "ConfigurationError",
        Verdict.FATAL,
        "the document asks for what cannot be",
        "correct the document",
    ),
    EndCause(
        ExitCode.BAD_DATA,
        "DataError",
        Verdict.FATAL,
        "prompts, a model folder or a checkpoint cannot be read as what they should be",
        "correct the data",
    ),
    EndCause(
        ExitCode.NOT_FINITE,
        "NotFinite",
        Verdict.FATAL,
        "a loss, gradient or reward is NaN or infinite",
        "lower the learning rate, or correct the reward",
    ),
    EndCause(
        ExitCode.USAGE,
        "UsageError",
        Verdict.FATAL,
        "the command line is wrong",
        "correct it; in a cluster, operator and image are of versions that do not fit together",
    ),
    EndCause(
        SIGKILLED,
        "Killed",
        Verdict.COUNTED,
        "killed, most likely by the kernel for its memory",
        "give it more memory, or lower what it needs as for 71",
    ),
    OTHER_SIGNAL,
    EndCause(
        ExitCode.OUT_OF_RESOURCES,
        "OutOfResources",
        Verdict.COUNTED,
        "memory (of an accelerator, too), a disk or the checkpoints' storage is full",
        "give it more room, or lower `training.microBatchSize`, `samplingBatchSize` or `decodeBatchSize`, or set "
        "`gradientCheckpointing` or `vaeSlicing`: these change neither the experiment nor its storage",
    ),
    EndCause(
        ExitCode.INTERNAL,
        "InternalError",
        Verdict.COUNTED,
        "a bug of ours, or a reward that raised or returned something that is not one score a picture",
        "report it with the logs, or correct the reward",
    ),
    OTHER_CODE,
    EndCause(
        ExitCode.UNAVAILABLE,
        "Unavailable",
        Verdict.COUNTED,
        "a service did not answer after all retries: a reward's endpoint, a model hub, the checkpoints' storage "
        "(`checkpoint.maxFailures` checkpoints in a row, or the last one)",
        "check the service; the next run goes on from the last checkpoint",
    ),
    EndCause(
        ExitCode.STALLED,
        "Stalled",
        Verdict.COUNTED,
        "a process makes no progress (`runPolicy.stallTimeoutSeconds`; its log shows where its threads stood), or lost "
        "a peer that failed, was killed or did not come",
        "the next run goes on from the last checkpoint",
    ),
    EndCause(
        ExitCode.INTERRUPTED,
        "Interrupted",
        Verdict.COUNTED,
        "a second Ctrl-C, or one before training began, or the launcher ended: stopped at once, without a checkpoint",
        "the next run goes on from the last checkpoint",
    ),
    EndCause(SIGTERMED, "Stopped", Verdict.FREE, "stopped before the trainer could handle the signal"),
    EndCause(
        ExitCode.STOPPED,
        "Stopped",
        Verdict.FREE,
        "stopped on request, after a checkpoint that is committed (if it could not be, 69, 71 or 78), or before the "
        "first iteration was done; or a newer attempt has taken over the storage or the output folder",
        "the next run goes on from there",
    ),
    EndCause(ExitCode.DONE, "Completed", Verdict.DONE, "done, or complete already"),
)
"""Of several ends, the first in this table explains the others.

1. 78, 65, 76 and 2 come first: every further attempt would end in the same way.
2. Signals come next, since a killed process leaves no message, and its peers only report that it is lost. SIGKILL comes
   before other signals, since a library may abort its process when a peer was killed.
3. A process that ends with 71 or 70 states what failed. Any other code, such as 1, does not, so it comes after them.
4. 69, a service that did not answer, comes after the failures of a process itself.
5. 74, 130, 143 and 75 come last: a failure makes the peers of a process end so.
"""

_BY_CODE = {cause.exit_code: cause for cause in END_CAUSES if cause.exit_code is not None}
_ORDER = {cause: number for number, cause in enumerate(END_CAUSES)}


def end_cause(code: int) -> EndCause:
    """The row of an exit code."""
    return _BY_CODE.get(code) or (OTHER_SIGNAL if code in SIGNALS else OTHER_CODE)


def cause_order(code: int) -> int:
    """The place of an exit code in `END_CAUSES`: of several codes the one with the lowest explains the others."""
    return _ORDER[end_cause(code)]


def describe_exit(code: int) -> str:
    """How a process with this exit code ended, as the predicate of a sentence."""
    if code not in SIGNALS or code == ExitCode.INTERRUPTED:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:  # a real-time signal, or one of another system
        name = f"signal {code - 128}"
    return f"was killed by {name}"


class TailorPOError(Exception):
    """An end that a user can understand; its text is the whole message, without a traceback."""

    exit_code = ExitCode.INTERNAL


class ConfigurationError(TailorPOError):
    """The document asks for something that cannot be: trying again cannot help."""

    exit_code = ExitCode.CONFIGURATION


class DataError(TailorPOError):
    """Prompts, a model folder or a checkpoint cannot be read as what they should be."""

    exit_code = ExitCode.BAD_DATA


class UnavailableError(TailorPOError):
    """A service (a reward endpoint, a store, a model hub) did not answer, after all retries."""

    exit_code = ExitCode.UNAVAILABLE


class RewardError(TailorPOError):
    """A reward raised, or returned something that is not one score an image."""

    exit_code = ExitCode.INTERNAL


class ResourceError(TailorPOError):
    """Memory or disk is full."""

    exit_code = ExitCode.OUT_OF_RESOURCES


class StalledError(TailorPOError):
    """Another process of this run was lost, failed or hangs; that process reports the cause."""

    exit_code = ExitCode.STALLED


class NoProgressError(StalledError):
    """This process' own watchdog ended it: it hangs, or waits for a process that does."""


class StoppedError(TailorPOError):
    """Stopped on request, after a checkpoint."""

    exit_code = ExitCode.STOPPED


class InterruptedEarlyError(StoppedError):
    """Ctrl-C before there was anything to save."""

    exit_code = ExitCode.INTERRUPTED


class NotFiniteError(TailorPOError):
    """A loss, gradient norm or reward is NaN or infinite: further training would only spoil the weights."""

    exit_code = ExitCode.NOT_FINITE


def error_of_file(error: OSError, path: object, place: object = None) -> TailorPOError:
    """The error for one of a file system: what is full or does not answer may come back, a wrong place cannot.

    path: of the file. place: the folder that the user gave, if it is another.
    """
    why = error.strerror or str(error)
    if error.errno in FULL:
        return ResourceError(f"{path}: not written, the disk or quota is full ({why})")
    where, detail = (path, why) if place is None else (place, f"{path}: {why}")
    if error.errno in FORBIDDEN:
        return ConfigurationError(f"{where}: no permission here ({detail})")
    if error.errno in WRONG_PLACE:
        usable = "file or folder" if place is None else "folder"
        return ConfigurationError(f"{where}: is not usable as a {usable} ({detail})")
    return UnavailableError(f"{path}: the storage does not answer as it should ({why})")


def as_user_error(error: BaseException) -> TailorPOError | None:
    """The error as one that a user can understand, if it is one."""
    if isinstance(error, TailorPOError):
        return error
    text = str(error)
    first_line = next(iter(text.splitlines()), "")
    # torch's own class cannot be imported here, and on a CPU torch raises a plain RuntimeError.
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or (
        isinstance(error, RuntimeError) and any(each in text for each in OUT_OF_MEMORY)
    ):
        return ResourceError(f"out of memory: {first_line or 'an allocation failed'}")
    if isinstance(error, OSError) and error.errno in FULL:
        return ResourceError(f"the disk is full: {error}")
    # Of a file that is written by a library. Others, such as a missing one, may be a bug of ours.
    if isinstance(error, OSError) and error.filename and error.errno in (*FORBIDDEN, *LOST):
        return error_of_file(error, error.filename)
    return None


def status(error: BaseException) -> int:
    """The exit status of a process that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    known = as_user_error(error)
    return known.exit_code if known else ExitCode.INTERNAL
