"""Requests to the API server, through `kubernetes.aio`: at a limited rate, with retries.

A request that the server rejects raises `RefusedError`; one that it does not answer is retried, and then raises
`UnreachableError`. JSON is passed through unchanged: the package's typed models would cost more than all other work
on a job.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.rest import RESTResponse

from tailorpo_operator.kube.rate_limit import RateLimit
from tailorpo_operator.metrics import REQUESTS
from tailorpo_operator.planning.observed import Reason

Verb = Literal["get", "list", "create", "update", "patch", "delete"]
Object = dict[str, Any]

TRIES = 5
FIRST_BACKOFF, MAX_BACKOFF = 0.2, 5.0
"""Seconds between tries; doubled after each."""
MAX_RETRY_AFTER = 60.0
"""Seconds that a server may ask for with `Retry-After`."""
CONNECT_SECONDS = 10.0
WATCH_SHARES, WATCH_GRACE = (1 / 2, 2 / 3), 1 / 4
"""Shares of a request's timeout: after how long (drawn between the two) the server ends a watch with a bookmark, and
how much later we end it. A silent connection may be idle or dead, so each watch is soon replaced by a new one, which
needs no new list.
"""
PAGE_SIZE = 200
"""Objects in a page of a list. A pod takes some 40 kB as Python objects, and three kinds are listed at once."""
RETRIABLE = (429, 500, 502, 503, 504)
METHODS: dict[Verb, str] = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


class RefusedError(Exception):
    """The API server rejected a request. retry_after: seconds that it asks to wait."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @property
    def as_reason(self) -> Reason:
        return Reason(self.reason or f"Status{self.status}", str(self))


class UnreachableError(Exception):
    """The API server did not answer, or was too busy, at each try."""


class Transport:
    """Requests as one user."""

    def __init__(
        self,
        client: ApiClient,
        limit: RateLimit,
        renew: Callable[[], Awaitable[None]],
        *,
        timeout: float = 30.0,
    ) -> None:
        """renew: reads the current credentials. timeout: seconds from a request's connection to its answer's end."""
        self._client, self._limit, self._renew = client, limit, renew
        connect = min(CONNECT_SECONDS, timeout)
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=connect)
        self._watch_seconds = [math.ceil(share * timeout) for share in WATCH_SHARES]
        self._watch_timeout = aiohttp.ClientTimeout(
            total=max(self._watch_seconds) + WATCH_GRACE * timeout, connect=connect
        )
        self._renew_lock, self._renewals = asyncio.Lock(), 0

    async def list_all(self, path: str, **query: str) -> tuple[list[Object], int]:
        """The items of all pages, and the resource version of the list. For thousands of items use `list_each`."""
        items: list[Object] = []
        return items, await self.list_each(path, items.append, **query)

    async def list_each(self, path: str, use: Callable[[Object], object], **query: str) -> int:
        """Calls `use` with each item, page by page, and keeps none. Returns the resource version of the list."""
        token = ""
        while True:
            page = await self.request(
                "list", path, query={**query, "limit": str(PAGE_SIZE), **({"continue": token} if token else {})}
            )
            for item in page["items"]:
                use(item)
            token = page["metadata"].get("continue", "")
            if not token:
                return int(page["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: int, **query: str) -> AsyncIterator[tuple[str, Object]]:
        """The events after a resource version, as type and object, until the server ends the watch.

        Raises `RefusedError`; `UnreachableError` if the connection breaks, or lasts longer than the server was asked.
        """
        options = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": str(version)}
        options["timeoutSeconds"] = str(random.randint(*self._watch_seconds))
        try:
            answer = await self._send("list", path, None, {**query, **options}, self._watch_timeout)
            async with answer.response as response:
                if response.status != 200:
                    raise _refusal(response.status, response.headers, await response.read())
                async for line in response.content:
                    event = orjson.loads(line)
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise UnreachableError(f"watch {path}: {type(error).__name__} {error}") from error

    async def request(self, verb: Verb, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Object:
        """Retries while the server is unreachable or busy, so each request must bear to be sent twice."""
        backoff, renewals = FIRST_BACKOFF, self._renewals
        for tried in range(1, TRIES + 1):
            await self._limit.take()
            retry_after = 0.0
            try:
                return await self._once(verb, path, body, query)
            except RefusedError as refusal:
                if refusal.status == 401 and tried == 1:  # the token may have been replaced
                    await self._renew_once(renewals)
                    continue
                if refusal.status not in RETRIABLE:
                    raise
                problem: Exception = refusal
                retry_after = min(refusal.retry_after, MAX_RETRY_AFTER)
            except (
                aiohttp.ClientError,
                TimeoutError,
                OSError,
                ValueError,
            ) as error:  # ValueError: the page of a proxy is not JSON
                REQUESTS.labels(verb, "error").inc()
                problem = error
            if tried < TRIES:
                await asyncio.sleep(max(retry_after, backoff * random.uniform(0.5, 1.5)))
                backoff = min(2 * backoff, MAX_BACKOFF)
        raise UnreachableError(f"{verb} {path}: {problem}") from problem

    async def _renew_once(self, renewals: int) -> None:
        """Renews the credentials, unless another request has done it since there were so many renewals."""
        async with self._renew_lock:
            if self._renewals == renewals:
                await self._renew()
                self._renewals += 1

    async def _once(self, verb: Verb, path: str, body: Any, query: Mapping[str, str] | None) -> Object:
        answer = await self._send(verb, path, body, query, self._timeout)
        text = await answer.read()
        REQUESTS.labels(verb, str(answer.status)).inc()
        if 200 <= answer.status < 300:
            raw: Object = orjson.loads(text)
            return raw
        raise _refusal(answer.status, answer.headers, text)

    async def _send(
        self, verb: Verb, path: str, body: Any, query: Mapping[str, str] | None, timeout: aiohttp.ClientTimeout
    ) -> RESTResponse:
        headers = {"Accept": "application/json"}
        if verb == "patch":
            headers["Content-Type"] = "application/merge-patch+json"
        address = path + ("?" + urlencode(query) if query else "")
        serialized = await self._client.param_serialize(
            METHODS[verb], address, header_params=headers, auth_settings=["BearerToken"]
        )
        method, url, sent_headers = serialized[:3]
        return await self._client.rest_client.request(
            method, url, headers=sent_headers, body=body, _request_timeout=timeout
        )


def writing_only_if(may: Callable[[], bool]) -> aiohttp.TraceConfig:
    """For a client's configuration: raises `UnreachableError` for a write that `may` forbids.

    `may` is asked once a request has its connection, just before its first byte is sent. If it were asked earlier, a
    process that is paused while a write waits for a connection would still send it afterwards.
    """

    async def before_sending(_: object, __: object, request: aiohttp.TraceRequestHeadersSentParams) -> None:
        if request.method != METHODS["get"] and not may():
            raise UnreachableError(f"{request.method} {request.url.path}: left to another operator, which leads now")

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(before_sending)
    return config


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch (RFC 7396) that changes `old` to `new`."""
    patch: Object = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(before, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch


def _refusal(status: int, headers: Mapping[str, str], text: bytes) -> RefusedError:
    header = headers.get("Retry-After", "")
    retry_after = float(header) if header.isdecimal() else 0.0
    try:
        answer = orjson.loads(text)
        return RefusedError(status, str(answer.get("reason") or ""), str(answer.get("message") or ""), retry_after)
    except (ValueError, AttributeError):  # the page of a proxy
        return RefusedError(status, "", text[:200].decode(errors="replace"), retry_after)
