"""Sees every change of every object of a namespace, and tells the story afterwards."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tailorpo_operator.api.types import GROUP, PLURAL, VERSION

Object = dict[str, Any]
Law = Callable[["Seen"], None]


@dataclass(frozen=True)
class Seen:
    """A change: versions of all kinds are of one count, which etcd keeps."""

    version: int
    kind: str
    how: str
    tree: Object
    at: float

    @property
    def name(self) -> str:
        return str(self.tree["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.tree["metadata"]["uid"])


class Witness:
    """Watches with threads of its own a namespace in which nothing is yet. law: is asked about each change."""

    def __init__(self, api: client.ApiClient, namespace: str, law: Law) -> None:
        self.begun = time.monotonic()
        self.broken: list[str] = []
        self._law = law
        self._seen: list[Seen] = []
        self._acts: list[tuple[float, str]] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        custom, core, batch = client.CustomObjectsApi(api), client.CoreV1Api(api), client.BatchV1Api(api)
        self._lists: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
            "TailorPOJob": (custom.list_namespaced_custom_object, (GROUP, VERSION, namespace, PLURAL)),
            "Job": (batch.list_namespaced_job, (namespace,)),
            "Pod": (core.list_namespaced_pod, (namespace,)),
            "Service": (core.list_namespaced_service, (namespace,)),
        }
        self._versions = {kind: _version(list_(*where)) for kind, (list_, where) in self._lists.items()}
        self._watches = {kind: watch.Watch() for kind in self._lists}
        self._threads = [threading.Thread(target=self._follow, args=(kind,), daemon=True) for kind in self._lists]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            while thread.is_alive():
                for each in self._watches.values():
                    each.stop()
                thread.join(0.02)

    def act(self, words: str) -> None:
        """Somebody does something."""
        self._acts.append((time.monotonic(), words))

    @property
    def history(self) -> list[Seen]:
        """All changes, in the order in which they were made."""
        with self._lock:
            return sorted(self._seen, key=lambda each: each.version)

    def now(self) -> dict[str, list[Object]]:
        """What there is, as far as it was seen."""
        found: dict[str, dict[str, Object]] = {kind: {} for kind in self._lists}
        for each in self.history:
            if each.how == "DELETED":
                found[each.kind].pop(each.uid, None)
            else:
                found[each.kind][each.uid] = each.tree
        return {kind: list(trees.values()) for kind, trees in found.items()}

    def story(self) -> str:
        """Acts, and what was seen of their consequences."""
        lines = [(at, f"> {words}") for at, words in self._acts]
        before: dict[str, str] = {}
        for each in self.history:
            words = _words(each)
            if words and before.get(each.uid) != words:
                lines.append((each.at, f"    {words}"))
                before[each.uid] = words
        return "\n".join(f"{at - self.begun:6.2f} {words}" for at, words in sorted(lines, key=lambda line: line[0]))

    def _follow(self, kind: str) -> None:
        list_, where = self._lists[kind]
        known = self._versions[kind]
        while not self._over.is_set():
            # The last line may be half a line.
            with contextlib.suppress(ApiException, HTTPError, OSError, json.JSONDecodeError):
                for event in self._watches[kind].stream(list_, *where, resource_version=str(known), deserialize=False):
                    if self._over.is_set():
                        return
                    tree = event["object"]
                    known = int(tree["metadata"]["resourceVersion"])
                    self._see(Seen(known, kind, event["type"], tree, time.monotonic()))

    def _see(self, seen: Seen) -> None:
        with self._lock:
            self._seen.append(seen)
            try:
                self._law(seen)
            except AssertionError as broken:
                self.broken.append(str(broken))


def _version(listed: Any) -> int:
    """Of a list."""
    return int(listed["metadata"]["resourceVersion"] if isinstance(listed, dict) else listed.metadata.resource_version)


def _words(seen: Seen) -> str:
    return "".join(_parts(seen))


def _parts(seen: Seen) -> Iterator[str]:
    tree = seen.tree
    status = tree.get("status") or {}
    yield f"{seen.kind} {seen.name}"
    if seen.how == "DELETED":
        yield " is gone"
        return
    if "deletionTimestamp" in tree["metadata"]:
        yield " is being deleted"
    if seen.kind == "TailorPOJob":
        attempts = [f"{each['number']} {each.get('reason', 'open')}" for each in status.get("attempts", [])]
        yield f": {status.get('phase')}, attempts {attempts}, failures {status.get('failures')}: "
        yield str(status.get("message"))
        yield f" (suspend {tree['spec'].get('runPolicy', {}).get('suspend', False)})"
    elif seen.kind == "Job":
        held = [each["type"] for each in status.get("conditions") or [] if each["status"] == "True"]
        yield f" {held}" if held else ""
    elif seen.kind == "Pod":
        yield f" {status.get('phase')}" + (f" on {tree['spec']['nodeName']}" if "nodeName" in tree["spec"] else "")
        for each in status.get("containerStatuses") or []:
            ended = each["state"].get("terminated")
            yield f" {ended['reason']} {ended['exitCode']}" if ended else " ready" if each["ready"] else ""
        for each in status.get("conditions") or []:
            yield f" {each['reason']}" if each["type"] == "DisruptionTarget" else ""
