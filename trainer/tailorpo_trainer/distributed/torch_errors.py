"""Which errors of torch.distributed mean a lost peer, and which mean something else."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed as dist

from tailorpo_trainer.errors import StalledError, as_user_error

CONNECTION_LOST = (
    *("Connection closed by peer", "Connection reset", "Connection refused", "Broken pipe", "Read error"),
    *("Write error", "Socket closed", "Timed out waiting", "timed out connecting", "Wait timeout"),
    *("Application timeout caused pair closure", "connectFullMesh failed"),
)
"""In the text of gloo's plain RuntimeErrors about a peer that is lost, hangs or did not come."""


@contextmanager
def translated() -> Iterator[None]:
    """Inside, a lost peer raises `StalledError` and exhausted memory `ResourceError`; others are unchanged."""
    try:
        yield
    except RuntimeError as error:
        if (known := as_user_error(error)) is not None:
            raise known from None
        if not is_lost_peer(error):
            raise
        raise StalledError(f"another process of this run is lost ({first_sentence(error)})") from None


def is_lost_peer(error: Exception) -> bool:
    """Whether torch raised this because a peer is lost: that peer knows the cause, this process does not."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in CONNECTION_LOST)


def first_sentence(error: Exception) -> str:
    """The first sentence of an error of torch, without its place in the sources and without advice."""
    text = next(iter(str(error).splitlines()), "")
    return re.sub(r"^\[[^\]]*\] ?", "", text).split(". ")[0][:200]
