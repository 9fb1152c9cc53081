"""Bytes from outside this program are bounded before they are read: kind of file, size, depth.

A file of a model, a checkpoint or a list of prompts may be a FIFO, a device or twenty gigabytes; JSON may be nested as
deep as it is long. Each is an ordinary error of the caller's, never a hang, a full memory or a bug of ours.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

CONFIG_BYTES = 1 << 20
"""Most bytes of a configuration file of a model; those of the hub have a few thousand."""


def read_file(path: Path, most: int) -> bytes:
    """The bytes of a regular file; raises `OSError`, also for another kind of file or more than `most` bytes."""
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        data = file.read(most + 1)  # a file of /proc has size 0
        if len(data) > most:
            size = max(found.st_size, len(data))
            raise OSError(errno.EFBIG, f"has {size:,} bytes, and at most {most:,} are read", str(path))
        return data


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text; raises `ValueError`, also for text that is nested too deeply or not UTF-8."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def read_json(path: Path, most: int = CONFIG_BYTES) -> Any:
    """The value in a JSON file; raises `OSError` or `ValueError`."""
    return parse_json(read_file(path, most).decode("utf-8"))
