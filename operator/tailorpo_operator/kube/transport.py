"""Requests to the API server, through `kubernetes.aio`: one at a time, at a limited rate, with retries.

What the server does not take is `RefusedError`; what it does not answer is tried again, and then
`UnreachableError`. JSON goes in and out as it is: the package's typed models cost more than everything else that is
done with a job.
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
FIRST_PAUSE, LAST_PAUSE = 0.2, 5.0
"""Seconds between tries, which double."""
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask for with `Retry-After`."""
CONNECT_SECONDS = 10.0
WATCH, WATCH_GRACE = (1 / 2, 2 / 3), 1 / 4
"""Of the time for a request: how long a watch lasts until the server ends it with a bookmark, and how much longer until
we do. Who says nothing may have nothing to say or be dead, so each goes on anew before that matters; it lists nothing.
"""
PAGE = 200
"""Objects of a list at a time. A pod takes some 40 kB as Python's objects, and lists of three kinds come at once."""
AGAIN = (429, 500, 502, 503, 504)
METHODS: dict[Verb, str] = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


class RefusedError(Exception):
    """The API server's word that it does not take something."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @property
    def told(self) -> Reason:
        return Reason(self.reason or f"Status{self.status}", str(self))


class UnreachableError(Exception):
    """The API server does not answer, or is too busy, after all tries."""


class Transport:
    """A connection as one user. renew: takes over the credentials that hold now."""

    def __init__(
        self,
        client: ApiClient,
        limit: RateLimit,
        renew: Callable[[], Awaitable[None]],
        *,
        timeout: float = 30.0,
    ) -> None:
        """timeout: seconds for a request, from its connection to the end of its answer."""
        self._client, self._limit, self._renew = client, limit, renew
        connect = min(CONNECT_SECONDS, timeout)
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=connect)
        self._watch_seconds = [math.ceil(share * timeout) for share in WATCH]
        self._watching = aiohttp.ClientTimeout(total=max(self._watch_seconds) + WATCH_GRACE * timeout, connect=connect)
        self._renewing, self._renewals = asyncio.Lock(), 0

    async def all(self, path: str, **query: str) -> tuple[list[Object], int]:
        """The items of all pages, and the version of the list. For thousands there is `each`."""
        items: list[Object] = []
        return items, await self.each(path, items.append, **query)

    async def each(self, path: str, use: Callable[[Object], object], **query: str) -> int:
        """Calls `use` with each item as its page comes, and keeps none. Returns the version of the list."""
        more = ""
        while True:
            page = await self.request(
                "list", path, query={**query, "limit": str(PAGE), **({"continue": more} if more else {})}
            )
            for item in page["items"]:
                use(item)
            more = page["metadata"].get("continue", "")
            if not more:
                return int(page["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: int, **query: str) -> AsyncIterator[tuple[str, Object]]:
        """Kinds and objects of what happens after a version, until the server ends the watch.

        Raises `RefusedError`; `UnreachableError` if the connection breaks, or nothing is heard for too long.
        """
        more = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": str(version)}
        more["timeoutSeconds"] = str(random.randint(*self._watch_seconds))
        try:
            answer = await self._send("list", path, None, {**query, **more}, self._watching)
            async with answer.response as response:
                if response.status != 200:
                    raise _refusal(response.status, response.headers, await response.read())
                async for line in response.content:
                    event = orjson.loads(line)
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise UnreachableError(f"watch {path}: {type(error).__name__} {error}") from error

    async def request(self, verb: Verb, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Object:
        """Tried again while the server is away or busy: everything sent here may be sent twice."""
        pause, renewals = FIRST_PAUSE, self._renewals
        for tried in range(1, TRIES + 1):
            await self._limit.take()
            asked = 0.0
            try:
                return await self._once(verb, path, body, query)
            except RefusedError as refusal:
                if refusal.status == 401 and tried == 1:  # a token that has been replaced
                    await self._renewed(renewals)
                    continue
                if refusal.status not in AGAIN:
                    raise
                problem: Exception = refusal
                asked = min(refusal.retry_after, LONGEST_PAUSE)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:  # the last: a proxy's page
                REQUESTS.labels(verb, "error").inc()
                problem = error
            if tried < TRIES:
                await asyncio.sleep(max(asked, pause * random.uniform(0.5, 1.5)))
                pause = min(2 * pause, LAST_PAUSE)
        raise UnreachableError(f"{verb} {path}: {problem}") from problem

    async def _renewed(self, renewals: int) -> None:
        """Renews, unless it was done meanwhile: of many requests that are refused at once, one does it for all."""
        async with self._renewing:
            if self._renewals == renewals:
                await self._renew()
                self._renewals += 1

    async def _once(self, verb: Verb, path: str, body: Any, query: Mapping[str, str] | None) -> Object:
        answer = await self._send(verb, path, body, query, self._timeout)
        text = await answer.read()
        REQUESTS.labels(verb, str(answer.status)).inc()
        if 200 <= answer.status < 300:
            tree: Object = orjson.loads(text)
            return tree
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
    """For a client's configuration: asked when a request has its connection, just before its first byte is sent.

    Any sooner, and a process that is paused while a write waits for that would wake up to send it.
    Raises `UnreachableError`.
    """

    async def before_sending(_: object, __: object, request: aiohttp.TraceRequestHeadersSentParams) -> None:
        if request.method != METHODS["get"] and not may():
            raise UnreachableError(f"{request.method} {request.url.path}: left to another operator, which leads now")

    made = aiohttp.TraceConfig()
    made.on_request_headers_sent.append(before_sending)
    return made


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch (RFC 7396) that makes one of the other."""
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
    asked = headers.get("Retry-After", "")
    wait = float(asked) if asked.isdecimal() else 0.0
    try:
        told = orjson.loads(text)
        return RefusedError(status, str(told.get("reason") or ""), str(told.get("message") or ""), wait)
    except (ValueError, AttributeError):  # a proxy's page
        return RefusedError(status, "", text[:200].decode(errors="replace"), wait)
