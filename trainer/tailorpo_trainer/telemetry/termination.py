"""The last word of a process: JSON of at most 4096 bytes where a kubelet, or the launcher of several ranks, reads it.

It is written while training goes on too: a process that is killed for its memory says nothing any more.
"""

import json
import os
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from typing import Any

from tailorpo_trainer import errors
from tailorpo_trainer.results.run_folder import overwrite, write_json
from tailorpo_trainer.spec.progress import MESSAGE_LENGTH, Progress, shorten

LIMIT = 4096
"""Bytes that a kubelet reads of a container's termination message."""

VARIABLE = "TAILORPO_TERMINATION_LOG"
DEFAULT = Path("/dev/termination-log")

LEAST = ("resumedFrom", "adapter", "message", "checkpoint")
"""What is left out of a message that is too long, in this order."""

_known = Progress()
_file: Path | None = None


def begin(progress: Progress, file: Path | None = None) -> None:
    """A run begins in this process; all that becomes known of it replaces `file` as well (`progress.json`)."""
    global _file
    _file = file
    know(progress)


def know(progress: Progress) -> None:
    """This is how far this process' run is, and its last word if no other can be said."""
    global _known
    _known = progress
    write(progress)
    if _file is not None:
        write_json(_file, progress.to_dict())


def known() -> Progress:
    """The newest progress of this process' run."""
    return _known


def last_word(error: BaseException, status: int | None = None) -> Progress:
    """This error ends the process. An end that is known already, with the same exit status, stands. Never fails."""
    status = errors.status(error) if status is None else status
    last = _known
    if last.error is None or last.error.exit_code != status:
        last = last.ended(error, status)
    try:
        know(last)
    except (OSError, errors.TailorPOError):
        if _file is not None:  # the disk is full, but what it holds already may be changed
            with suppress(OSError):
                overwrite(_file, (json.dumps(last.to_dict(), ensure_ascii=False) + "\n").encode())
    return last


def targets() -> list[Path]:
    """The files that `$TAILORPO_TERMINATION_LOG` names (empty: none), else the one that any container of a pod has."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return [Path(part) for part in named.split(os.pathsep) if part]
    # Of several processes that torchrun itself started in one pod, one may write.
    alone = os.environ.get("LOCAL_RANK", "0") == "0"
    return [DEFAULT] if alone and os.access(DEFAULT, os.W_OK) else []


def write(progress: Progress, path: Path | None = None) -> None:
    """Replace what is at `path` (default: `targets()`), in place: a kubelet reads the file it mounted. Never fails."""
    for target in [path] if path else targets():
        with suppress(OSError):  # the exit status still tells
            overwrite(target, encode(progress))


def read(path: Path) -> Progress | None:
    """What `write` left; None for anything else."""
    try:
        return Progress.read(path.read_bytes())
    except OSError:
        return None


def encode(progress: Progress) -> bytes:
    """At most `LIMIT` bytes of JSON: the error's text gives way first, then where things are, never how far it is."""
    for dropped in range(len(LEAST) + 1):
        tree = progress.to_dict()
        for key in LEAST[:dropped]:
            tree.pop(key, None)
        data = _fitted(tree)
        if len(data) <= LIMIT:
            return data
    raise AssertionError("every text of a progress is bounded")


def _fitted(tree: dict[str, Any]) -> bytes:
    """The tree with the longest error text that fits, though never less than its first words."""
    text = tree.get("error", {}).get("text", "")

    def dump(length: int) -> bytes:
        if text:
            tree["error"]["text"] = shorten(text, length)
        return json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    shortest = min(len(text), MESSAGE_LENGTH)
    more = bisect_right(range(shortest + 1, len(text) + 1), LIMIT, key=lambda length: len(dump(length)))
    return dump(shortest + more)
