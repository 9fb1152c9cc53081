"""The requests to the API server, from its audit log."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.waiting import until

WRITING = frozenset({"create", "update", "patch", "delete", "deletecollection"})

# Who asked for what and how it ended, but no bodies; one line a request, at its end.
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Request:
    """One finished request. `resource` includes the subresource, as in "pods/status"; empty for other paths."""

    user: str
    agent: str
    verb: str
    resource: str
    namespace: str
    name: str
    path: str
    code: int

    @property
    def writes(self) -> bool:
        return self.verb in WRITING


class AuditLog:
    """The requests to one API server, in order."""

    def __init__(self, path: Path, get: Callable[[str], object]) -> None:
        """`get` makes a GET request of a path to the server: how the end of the log is found."""
        self.path = path
        self._get = get

    def mark(self) -> int:
        """A position in the log after every request that was answered before this call."""
        sign = uuid.uuid4().hex
        start = self.path.stat().st_size
        self._get(f"/version?mark={sign}")

        def place() -> int:
            with self.path.open("rb") as log:
                log.seek(start)
                ends = (log.tell() for line in iter(log.readline, b"") if sign.encode() in line and line[-1:] == b"\n")
                return next(ends, 0)

        return until(place, "the audit log records a request")

    def since(self, mark: int) -> list[Request]:
        """The requests after the mark that are answered by now."""
        end = self.mark()
        with self.path.open("rb") as log:
            log.seek(mark)
            lines = log.read(end - mark).splitlines()
        requests = [_request(json.loads(line)) for line in lines]
        return [each for each in requests if not each.path.startswith("/version?mark=")]


def _request(event: dict[str, Any]) -> Request:
    target = event.get("objectRef", {})
    parts = (target.get("resource", ""), target.get("subresource", ""))
    return Request(
        user=event["user"].get("username", ""),
        agent=event.get("userAgent", ""),
        verb=event["verb"],
        resource="/".join(part for part in parts if part),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        path=event["requestURI"],
        code=event.get("responseStatus", {}).get("code", 0),
    )
