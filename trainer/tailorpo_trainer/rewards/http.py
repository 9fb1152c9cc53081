"""A reward that servers compute: pictures are sent to them, scores are returned. See docs/rewards.md.

Pictures are sent to the endpoints only, and no header is ever logged.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import io
import itertools
import json
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
import torch
from PIL import Image
from torch import Tensor

from tailorpo_trainer.errors import ConfigurationError, RewardError, UnavailableError
from tailorpo_trainer.rewards.pixels import to_pillow
from tailorpo_trainer.untrusted import parse_json

PROTOCOL = 1
TOKEN = "TAILORPO_REWARD_TOKEN"
"""Environment variable whose value, if set, is sent to every endpoint as bearer token."""

REQUESTS_PER_ENDPOINT = 2
"""Concurrent requests to one endpoint: it scores one batch while the next is being sent."""

LONGEST_BACKOFF = 30.0
LONGEST_RETRY_AFTER = 120.0
"""Seconds. A server with a longer Retry-After is treated as unavailable."""

ANSWER_BYTES, SCORE_BYTES = 128 * 1024, 64
"""Most bytes of an answer, after decompression, beside those of each picture's score."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Hosts that no proxy of the environment can reach for us."""

AVOID_SECONDS = 30.0
"""Seconds after a failure during which other endpoints are tried first, so that few batches await a timeout."""


@dataclass
class Endpoint:
    """One server. It is tried last until `avoid_until`, and not at all until `unavailable_until` (clock seconds)."""

    url: str
    avoid_until: float = 0.0
    unavailable_until: float = 0.0


@dataclass(frozen=True)
class Clock:
    """Time and random numbers, so that tests can replace both."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


class RetryableError(Exception):
    """A failure of one request that may be retried. unavailable_for: seconds, from the server's Retry-After."""

    def __init__(self, text: str, unavailable_for: float = 0.0) -> None:
        super().__init__(text)
        self.unavailable_for = unavailable_for


class HttpReward:
    """Scores from one or more servers that implement the protocol; the servers define the meaning of the score.

    `endpoints` are used in turn. A batch that fails at one is sent to the next immediately; when all have failed, they
    are tried again up to `retries` times, with exponential backoff and full jitter of up to 1, 2, 4, ... 30 s.
    `timeout_seconds` is the limit for one request until its answer is whole, `batch_size` the number of its pictures.

    Requests run in an event loop of a thread of its own, so that a signal interrupts the wait for them, and a request
    that is given up leaves nothing behind.
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
        del device  # the servers compute
        if not endpoints:
            raise ConfigurationError(
                "endpoints: reward 'http' needs at least one URL, such as http://scorer:8080/score"
            )
        for url in endpoints:
            _check(url)
        self._endpoints = [Endpoint(url) for url in dict.fromkeys(endpoints)]
        self._retries, self._batch_size = retries, batch_size
        self._clock = clock or Clock()
        self._round_robin = itertools.count()
        self._token = _token()
        headers = {"content-type": "application/json"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        self._timeout, self._headers = timeout_seconds, headers
        self._loop = asyncio.new_event_loop()
        self._client = self._open_client()
        threading.Thread(target=self._loop.run_forever, name="reward", daemon=True).start()
        # A reward is never closed explicitly, so its connections are closed when it is garbage-collected.
        weakref.finalize(self, _close, self._loop, self._client)

    def _open_client(self) -> httpx.AsyncClient:
        try:
            # To this machine itself directly, as no proxy elsewhere could.
            direct = {f"all://{host}": httpx.AsyncHTTPTransport(retries=0) for host in LOOPBACK}
            timeout = httpx.Timeout(self._timeout, connect=min(self._timeout, 10.0))
            return httpx.AsyncClient(timeout=timeout, headers=self._headers, mounts=direct)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            proxies = [name for name in os.environ if name.upper() in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")]
            raise ConfigurationError(
                f"endpoints: no connection can be made by {', '.join(sorted(proxies)) or 'the environment'}: {error}: "
                "give a proxy such as http://proxy:3128 or socks5://proxy:1080, or name the endpoint's host in NO_PROXY"
            ) from None

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores, float32 [n], of `images`, float32 [n, 3, H, W] in [0, 1].

        Raises `UnavailableError` if no endpoint answered after all retries, `ConfigurationError` if one refused the
        request, `RewardError` if an answer does not have one number for each picture.
        """
        future = asyncio.run_coroutine_threadsafe(self._score_all(to_pillow(images), list(prompts)), self._loop)
        try:
            scores = future.result()
        finally:
            future.cancel()  # after a signal; otherwise it is done
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    async def touch(self) -> None:
        """Ask the first endpoint for anything. Raises `UnavailableError` if nothing answers."""
        url = self._endpoints[0].url
        try:
            async with asyncio.timeout(self._timeout), self._client.stream("HEAD", url):
                pass
        except (httpx.RequestError, TimeoutError) as error:
            reason = f"{type(error).__name__} {_reason(error)}".strip()
            raise UnavailableError(f"{without_query(url)!r} does not answer: {reason}") from None

    async def _score_all(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The scores of all batches, in order; the first failure cancels the other batches."""
        at_once = asyncio.Semaphore(REQUESTS_PER_ENDPOINT * len(self._endpoints))

        async def score(rows: slice) -> list[float]:
            async with at_once:
                return await self._score(pictures[rows], prompts[rows])

        starts = range(0, len(pictures), self._batch_size)
        tasks = [asyncio.create_task(score(slice(start, start + self._batch_size))) for start in starts]
        try:
            return list(itertools.chain.from_iterable(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The scores of one batch, from the first endpoint that answers."""
        body = await asyncio.to_thread(_body, pictures, prompts)  # compressing takes as long as some requests
        failure = "every endpoint has asked to wait (Retry-After)"
        for attempt in range(self._retries + 1):
            await self._wait(attempt)
            for endpoint in self._available_endpoints():
                try:
                    return await self._post(endpoint, body, len(pictures))
                except RetryableError as error:
                    now = self._clock.now()
                    endpoint.avoid_until = now + AVOID_SECONDS
                    endpoint.unavailable_until = max(endpoint.unavailable_until, now + error.unavailable_for)
                    failure = f"{without_query(endpoint.url)}: {error}"
        urls = ", ".join(without_query(endpoint.url) for endpoint in self._endpoints)
        raise UnavailableError(
            f"reward 'http': no score from {urls} after {self._retries} retries; the last error was {failure}"
        )

    def _available_endpoints(self) -> Iterator[Endpoint]:
        """Endpoints in turn, recently failed ones last, without those that are unavailable."""
        start, now = next(self._round_robin) % len(self._endpoints), self._clock.now()
        turn = self._endpoints[start:] + self._endpoints[:start]
        for endpoint in sorted(turn, key=lambda endpoint: endpoint.avoid_until > now):
            if endpoint.unavailable_until <= self._clock.now():
                yield endpoint

    async def _wait(self, attempt: int) -> None:
        """Exponential backoff with full jitter, and at least until one endpoint is available."""
        backoff = self._clock.jitter() * min(LONGEST_BACKOFF, 2.0 ** (attempt - 1)) if attempt else 0.0
        unavailable = min(endpoint.unavailable_until for endpoint in self._endpoints) - self._clock.now()
        if max(backoff, unavailable) > 0:
            await self._clock.sleep(max(backoff, unavailable))

    async def _post(self, endpoint: Endpoint, body: bytes, count: int) -> list[float]:
        """One request. Raises `RetryableError` if a retry may help, otherwise an error of `__call__`."""
        subject = f"reward 'http': {without_query(endpoint.url)}"
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", endpoint.url, content=body) as answer,
            ):
                content = await _read(answer, ANSWER_BYTES + SCORE_BYTES * count)
        except TimeoutError:
            raise RetryableError(f"no whole answer within {self._timeout:g} s") from None
        except httpx.RequestError as error:
            raise RetryableError(f"{type(error).__name__} {_reason(error)}".strip()) from error
        text = self._excerpt(content.decode("utf-8", errors="replace"))
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise RetryableError(
                f"HTTP {answer.status_code} {text}", retry_after(answer.headers.get("retry-after", ""))
            )
        if answer.status_code != 200:
            raise ConfigurationError(f"{subject} refused the request with HTTP {answer.status_code} {text}")
        if len(content) > ANSWER_BYTES + SCORE_BYTES * count:
            raise RewardError(f"{subject} answered more than {len(content) - 1:,} bytes for {count} pictures: {text}")
        try:
            scores = parse_json(content)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise RewardError(f'{subject} answered {text}, not JSON such as {{"scores": [0.5]}}') from error
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            raise RewardError(f"{subject} answered {text}: its scores are not a list of numbers")
        if len(scores) != count:
            raise RewardError(f"{subject} answered {len(scores)} scores for {count} pictures")
        return [_as_float(score) for score in scores]

    def _excerpt(self, text: str) -> str:
        """A server's text for a message: on one line, of at most 200 characters, without the token."""
        if self._token:
            text = text.replace(self._token, "…")
        line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        return repr(line if len(line) <= 200 else line[:200] + "…")


def retry_after(value: str) -> float:
    """Seconds from a Retry-After header, which holds a number or an HTTP date; 0 if it is invalid."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


def without_query(url: str) -> str:
    """A URL for messages, without its query, which may hold a secret."""
    return str(httpx.URL(url).copy_with(query=None, fragment=None))


def check_reachable(url: str, seconds: float = 5.0) -> None:
    """Raise `UnavailableError` unless something answers there, whatever it says: no picture is sent.

    Raises `ConfigurationError` for what is no URL.
    """
    reward = HttpReward(endpoints=[url], timeout_seconds=seconds)
    asyncio.run_coroutine_threadsafe(reward.touch(), reward._loop).result()


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


async def _read(answer: httpx.Response, most: int) -> bytes:
    """The content of an answer; of a longer one the first `most + 1` bytes, and nothing more is received."""
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk[: most + 1 - len(content)]
        if len(content) > most:
            break
    return bytes(content)


def _reason(error: BaseException) -> str:
    """What the system said, where there is such an error among the causes: the library only says that all failed."""
    following: BaseException | None = error
    while following is not None:
        if isinstance(following, OSError) and following.strerror:
            # Of asyncio's errors the text is an address; the resolver's numbers are negative, and none of the system's.
            number = following.errno or 0
            return os.strerror(number) if number > 0 else following.strerror
        following = following.__cause__ or following.__context__
    return str(error)


def _as_float(score: float) -> float:
    try:
        return float(score)
    except OverflowError:  # an integer of more than 308 digits
        return math.copysign(math.inf, score)


def _close(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Closes the connections, ends the loop's thread, and waits for neither."""

    async def close() -> None:
        await client.aclose()
        loop.stop()

    if loop.is_running():
        asyncio.run_coroutine_threadsafe(close(), loop)


def _body(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> bytes:
    images = [_png(picture) for picture in pictures]
    return json.dumps({"version": PROTOCOL, "images": images, "prompts": list(prompts)}).encode()


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)  # fast; PNG is lossless at every level
    return base64.b64encode(file.getvalue()).decode()
