"""A reward that another program computes: pictures go out, scores come back. See docs/rewards.md.

Nothing of an image leaves this module but to the endpoints, and no header is ever logged.
"""

from __future__ import annotations

import base64
import email.utils
import io
import itertools
import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import httpx
import torch
from PIL import Image
from torch import Tensor

from tailorpo_trainer.errors import ConfigurationError, RewardError, UnavailableError
from tailorpo_trainer.rewards.pixels import to_pillow

PROTOCOL = 1
TOKEN = "TAILORPO_REWARD_TOKEN"
"""Environment variable whose value, if any, every endpoint gets as bearer token."""

IN_FLIGHT = 2
"""Batches at one endpoint at a time: it scores one while the next is on its way."""

LONGEST_BACKOFF = 30.0
LONGEST_RETRY_AFTER = 120.0
"""Seconds. A server that asks for a day's patience is not up."""

REST = 30.0
"""Seconds that an endpoint is asked last after a failure, lest a dead one cost every batch its timeout."""


@dataclass
class Endpoint:
    """One server. Until `rest_until` we would rather ask others; until `closed_until` it wants no request."""

    url: str
    rest_until: float = 0.0
    closed_until: float = 0.0


@dataclass(frozen=True)
class Clock:
    """Time and chance, so that tests need neither."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[threading.Event, float], object] = threading.Event.wait
    jitter: Callable[[], float] = random.random


class PassingError(Exception):
    """A failure that may pass. `closed_for`: seconds that the server asked to be left alone."""

    def __init__(self, text: str, closed_for: float = 0.0) -> None:
        super().__init__(text)
        self.closed_for = closed_for


class HttpReward:
    """Scores from one or more servers that speak the protocol; what the score means is theirs to say.

    `endpoints` are used in turn. A batch that fails at one goes to the next at once; if all have failed, they
    are asked again up to `retries` times, after a random wait of up to 1, 2, 4, ... 30 s. `timeout_seconds`
    bounds each silence of a server, `batch_size` the pictures in one request.
    """

    name = "http"
    differentiable = False
    unit = "the server's"

    def __init__(
        self,
        device: torch.device | str = "cpu",
        endpoints: Sequence[str] = (),
        timeout_seconds: float = 60.0,
        retries: int = 5,
        batch_size: int = 16,
        clock: Clock | None = None,
    ) -> None:
        del device  # pictures leave this machine
        if not endpoints:
            raise ConfigurationError(
                "endpoints: reward 'http' needs at least one URL, such as http://scorer:8080/score"
            )
        for url in endpoints:
            _check(url)
        self._endpoints = [Endpoint(url) for url in dict.fromkeys(endpoints)]
        self._retries, self._batch_size = retries, batch_size
        self._clock = clock or Clock()
        self._turns = itertools.count()
        self._token = _token()
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        timeout = httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 10.0))
        self._client = httpx.Client(timeout=timeout, headers=headers)
        # A reward has no last call: its connections end with it, after any request that is still on its way.
        weakref.finalize(self, self._client.close)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 [n]; the device may be any.

        UnavailableError: no endpoint answered, after all retries. ConfigurationError: one refused it.
        RewardError: an answer is not one number a picture.
        """
        pictures = to_pillow(images)
        starts = range(0, len(pictures), self._batch_size)
        stop = threading.Event()
        pool = ThreadPoolExecutor(IN_FLIGHT * len(self._endpoints), thread_name_prefix="reward")
        try:
            batches = [slice(start, start + self._batch_size) for start in starts]
            futures = [pool.submit(self._score, pictures[rows], prompts[rows], stop) for rows in batches]
            for future in as_completed(futures):
                future.result()  # the first failure ends the others
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        scores = [score for future in futures for score in future.result()]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str], stop: threading.Event) -> list[float]:
        """The scores of one batch, from whichever endpoint gives them."""
        images = [_png(picture) for picture in pictures]
        body = json.dumps({"version": PROTOCOL, "images": images, "prompts": list(prompts)}).encode()
        failure = "every endpoint asked to be left alone"
        for attempt in range(self._retries + 1):
            self._wait(attempt, stop)
            for endpoint in self._order():
                try:
                    return self._post(endpoint, body, len(images))
                except PassingError as error:
                    now = self._clock.now()
                    endpoint.rest_until = now + REST
                    endpoint.closed_until = max(endpoint.closed_until, now + error.closed_for)
                    failure = f"{shown(endpoint.url)}: {error}"
        urls = ", ".join(shown(endpoint.url) for endpoint in self._endpoints)
        raise UnavailableError(
            f"reward 'http': no score from {urls} after {self._retries} retries; the last error was {failure}"
        )

    def _order(self) -> Iterator[Endpoint]:
        """Endpoints in turn, those that failed of late last, without those that asked to be left alone."""
        start, now = next(self._turns) % len(self._endpoints), self._clock.now()
        turn = self._endpoints[start:] + self._endpoints[:start]
        for endpoint in sorted(turn, key=lambda endpoint: endpoint.rest_until > now):
            if endpoint.closed_until <= self._clock.now():
                yield endpoint

    def _wait(self, attempt: int, stop: threading.Event) -> None:
        """Exponential backoff with full jitter, and at least until one endpoint is open again."""
        backoff = self._clock.jitter() * min(LONGEST_BACKOFF, 2.0 ** (attempt - 1)) if attempt else 0.0
        opens = min(endpoint.closed_until for endpoint in self._endpoints) - self._clock.now()
        if max(backoff, opens) > 0:
            self._clock.sleep(stop, max(backoff, opens))
        if stop.is_set():
            raise PassingError("another batch has failed for good")  # nobody reads this result

    def _post(self, endpoint: Endpoint, body: bytes, count: int) -> list[float]:
        """One request. PassingError if trying again may help, or one of the errors of `__call__`."""
        where = f"reward 'http': {shown(endpoint.url)}"
        try:
            answer = self._client.post(endpoint.url, content=body)
        except httpx.RequestError as error:
            raise PassingError(f"{type(error).__name__} {error}".strip()) from error
        text = self._quote(answer.text)
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise PassingError(f"HTTP {answer.status_code} {text}", retry_after(answer.headers.get("retry-after", "")))
        if answer.status_code != 200:
            raise ConfigurationError(f"{where} refused the request with HTTP {answer.status_code} {text}")
        try:
            scores = answer.json()["scores"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RewardError(f'{where} answered {text}, not JSON such as {{"scores": [0.5]}}') from error
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            raise RewardError(f"{where} answered {text}: its scores are not a list of numbers")
        if len(scores) != count:
            raise RewardError(f"{where} answered {len(scores)} scores for {count} pictures")
        return [float(score) for score in scores]

    def _quote(self, text: str) -> str:
        """A server's text, short and on one line; should it echo our token, without it."""
        if self._token:
            text = text.replace(self._token, "…")
        line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        return repr(line if len(line) <= 200 else line[:200] + "…")


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number, or an HTTP date; 0 if it says neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


def shown(url: str) -> str:
    """A URL for people to read: its query may hold a secret."""
    return str(httpx.URL(url).copy_with(query=None, fragment=None))


def _check(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"endpoints: not a URL ({error}); give one such as http://scorer:8080/score"
        ) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"endpoints: {url!r} is no http:// or https:// URL, such as http://scorer:8080/score")
    if parsed.userinfo:
        raise ConfigurationError(
            f"endpoints: the URL of {parsed.host} holds a password: put a token in the "
            f"environment variable {TOKEN} instead"
        )


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise ConfigurationError(f"endpoints: the value of {TOKEN} has characters that no HTTP header may hold")
    return token


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)  # lossless either way; the network is local
    return base64.b64encode(file.getvalue()).decode()
