"""Waiting for what a cluster will do, without sleeping longer than needed."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0  # seconds; a machine that is shared can be slow
INTERVAL = 0.05


def until(check: Callable[[], T | None], what: str, seconds: float = TIMEOUT_SECONDS, interval: float = INTERVAL) -> T:
    """The first result of `check` that is true; an AssertionError with the last one if none comes in time.

    An AssertionError of `check` counts as "not yet", so that it can be written as a list of expectations.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen: object
        try:
            seen = result = check()
            if result:
                return result
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s; last seen: {seen!r}")
        time.sleep(interval)
