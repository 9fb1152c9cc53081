"""Why a process ended: one exit code, one meaning.

The numbers follow BSD's `sysexits.h` where it has the notion, so that a person who knows `EX_CONFIG`
reads them at sight; the operator decides from them whether a new attempt makes sense.
"""

import errno
from enum import IntEnum

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a system whose disk, quota or largest file is full."""


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
    """Another process of this run was lost, failed or hangs; the cause is told by that process."""

    exit_code = ExitCode.STALLED


class StoppedError(TailorPOError):
    """Stopped on request, after a checkpoint."""

    exit_code = ExitCode.STOPPED


class NotFiniteError(TailorPOError):
    """A loss, gradient norm or reward is NaN or infinite: going on would only spoil the weights."""

    exit_code = ExitCode.NOT_FINITE


def as_user_error(error: BaseException) -> TailorPOError | None:
    """The error as one that a user can understand, if it is one."""
    if isinstance(error, TailorPOError):
        return error
    first_line = next(iter(str(error).splitlines()), "")
    # torch's own class cannot be imported here, and on a CPU it has none.
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in first_line
    ):
        return ResourceError(f"out of memory: {first_line or 'no more could be had'}")
    if isinstance(error, OSError) and error.errno in FULL:
        return ResourceError(f"the disk is full: {error}")
    return None


def status(error: BaseException) -> int:
    """The exit status of a process that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    known = as_user_error(error)
    return known.exit_code if known else ExitCode.INTERNAL
