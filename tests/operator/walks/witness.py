"""Records every change of every object of a namespace, and prints the history."""

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
Law = Callable[["WatchEvent"], None]


@dataclass(frozen=True)
class WatchEvent:
    """A change. The resource versions of all kinds are comparable: they come from one counter of etcd."""

    version: int
    kind: str
    type: str
    raw: Object
    at: float

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])


class Witness:
    """Watches an empty namespace, with threads of its own. law: checks each change."""

    def __init__(self, api: client.ApiClient, namespace: str, law: Law) -> None:
        self.begun = time.monotonic()
        self.broken: list[str] = []
        self._law = law
        self._events: list[WatchEvent] = []
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

    def act(self, text: str) -> None:
        """Records an action of the walk."""
        self._acts.append((time.monotonic(), text))

    @property
    def history(self) -> list[WatchEvent]:
        """All changes, in the order of their resource versions."""
        with self._lock:
            return sorted(self._events, key=lambda each: each.version)

    def now(self) -> dict[str, list[Object]]:
        """The objects that exist now, as far as they were observed."""
        found: dict[str, dict[str, Object]] = {kind: {} for kind in self._lists}
        for each in self.history:
            if each.type == "DELETED":
                found[each.kind].pop(each.uid, None)
            else:
                found[each.kind][each.uid] = each.raw
        return {kind: list(raw_objects.values()) for kind, raw_objects in found.items()}

    def story(self) -> str:
        """The actions, and the observed changes after each."""
        lines = [(at, f"> {text}") for at, text in self._acts]
        before: dict[str, str] = {}
        for each in self.history:
            text = _text(each)
            if text and before.get(each.uid) != text:
                lines.append((each.at, f"    {text}"))
                before[each.uid] = text
        return "\n".join(f"{at - self.begun:6.2f} {text}" for at, text in sorted(lines, key=lambda line: line[0]))

    def _follow(self, kind: str) -> None:
        list_, where = self._lists[kind]
        known = self._versions[kind]
        while not self._over.is_set():
            # The last line may be incomplete.
            with contextlib.suppress(ApiException, HTTPError, OSError, json.JSONDecodeError):
                for event in self._watches[kind].stream(list_, *where, resource_version=str(known), deserialize=False):
                    if self._over.is_set():
                        return
                    raw = event["object"]
                    known = int(raw["metadata"]["resourceVersion"])
                    self._record(WatchEvent(known, kind, event["type"], raw, time.monotonic()))

    def _record(self, event: WatchEvent) -> None:
        with self._lock:
            self._events.append(event)
            try:
                self._law(event)
            except AssertionError as broken:
                self.broken.append(str(broken))


def _version(listed: Any) -> int:
    """Of a list."""
    return int(listed["metadata"]["resourceVersion"] if isinstance(listed, dict) else listed.metadata.resource_version)


def _text(event: WatchEvent) -> str:
    return "".join(_parts(event))


def _parts(event: WatchEvent) -> Iterator[str]:
    raw = event.raw
    status = raw.get("status") or {}
    yield f"{event.kind} {event.name}"
    if event.type == "DELETED":
        yield " is gone"
        return
    if "deletionTimestamp" in raw["metadata"]:
        yield " is being deleted"
    if event.kind == "TailorPOJob":
        attempts = [f"{each['number']} {each.get('reason', 'open')}" for each in status.get("attempts", [])]
        yield f": {status.get('phase')}, attempts {attempts}, failures {status.get('failures')}: "
        yield str(status.get("message"))
        yield f" (suspend {raw['spec'].get('runPolicy', {}).get('suspend', False)})"
    elif event.kind == "Job":
        held = [each["type"] for each in status.get("conditions") or [] if each["status"] == "True"]
        yield f" {held}" if held else ""
    elif event.kind == "Pod":
        yield f" {status.get('phase')}" + (f" on {raw['spec']['nodeName']}" if "nodeName" in raw["spec"] else "")
        for each in status.get("containerStatuses") or []:
            ended = each["state"].get("terminated")
            yield f" {ended['reason']} {ended['exitCode']}" if ended else " ready" if each["ready"] else ""
        for each in status.get("conditions") or []:
            yield f" {each['reason']}" if each["type"] == "DisruptionTarget" else ""
