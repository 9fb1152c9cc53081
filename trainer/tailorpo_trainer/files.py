"""Every file of results is written here: an error that may pass is tried again, and the others name the file.

A disk may be full for some seconds, and a network file system away, just when a line of a table is due; a checkpoint
that meets the same waits a minute for it. No torch.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from tailorpo_trainer.errors import ResourceError, UnavailableError, error_of_file

TRIES = 7
"""Tries of one write."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between tries. The pause doubles each time, with jitter, so that many runs do not retry at once."""
TRANSIENT = (UnavailableError, ResourceError)
"""Errors that may end by themselves: a store that does not answer, or that has no space."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)
_tries = ContextVar("tries", default=TRIES)
_random = random.Random()  # not the global generator, which belongs to the run and its plug-ins


@contextmanager
def one_try() -> Iterator[None]:
    """Inside, nothing is tried again: for what a run writes when it ends with an error, which is the important one."""
    token = _tries.set(1)
    try:
        yield
    finally:
        _tries.reset(token)


def replace(path: Path, data: bytes | str) -> None:
    """Replace a file atomically, and create its folder: a reader gets either the old or the new content.

    Raises `ResourceError`, `ConfigurationError` or `UnavailableError` with the file's name.
    """
    content = data if isinstance(data, bytes) else data.encode("utf-8", errors="backslashreplace")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # also after a second Ctrl-C

    make_folder(path.parent)
    persistently(path, write)


def append(path: Path, text: str, may: Callable[[], bool] = lambda: True) -> None:
    """Append a text to a file, whole or not at all, if `may` allows it with the file open; raises as `replace`."""
    data = text.encode()

    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not may():
                return
            before = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, data[written:])
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    persistently(path, write)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, where they are missing; raises as `replace`."""
    persistently(folder, lambda: folder.mkdir(parents=True, exist_ok=True))


def remove(path: Path) -> None:
    """Delete a file, which may be missing; raises as `replace`."""
    persistently(path, lambda: path.unlink(missing_ok=True))


def persistently(path: Path, action: Callable[[], Result]) -> Result:
    """The result of an action on a file, tried again while its error may pass; raises as `replace`."""
    pause, tries = FIRST_PAUSE, _tries.get()
    for number in range(1, tries + 1):
        try:
            return action()
        except OSError as error:
            known = error_of_file(error, path)
            if number == tries or not isinstance(known, TRANSIENT):
                raise known from error
        wait = pause * _random.uniform(0.5, 1.0)
        logger.warning("try %d of %d failed, the next comes in %.1f s: %s", number, tries, wait, known)
        sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError


def sleep(seconds: float) -> None:
    """Wait between two tries."""
    time.sleep(seconds)
