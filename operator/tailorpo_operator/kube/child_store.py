"""A store of one kind of children: attempt Jobs or pods, by the job that they belong to."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, Generic, NamedTuple, TypeVar

from tailorpo_operator.api import naming
from tailorpo_operator.api.naming import Key

Object = Mapping[str, Any]
Value = TypeVar("Value")

MAX_TOMBSTONES = 20_000
"""Uids of deleted objects, and names that they had."""


class Entry(NamedTuple, Generic[Value]):
    """A child as a value, the resource version that it is of, and the uid of its owner."""

    resource_version: int
    value: Value
    owner: str | None


class ChildStore(Generic[Value]):
    """Entries by job and uid."""

    def __init__(self, tombstones: OrderedDict[str, None], on_drop: Callable[[Key, str], None]) -> None:
        """on_drop: is called with the job and the uid of a child before it is removed."""
        self._entries: dict[Key, dict[str, Entry[Value]]] = defaultdict(dict)
        self._tombstones, self._on_drop = tombstones, on_drop

    def entries(self, key: Key) -> Collection[Entry[Value]]:
        return self._entries.get(key, {}).values()

    def values(self, key: Key) -> list[Value]:
        return [entry.value for entry in self.entries(key)]

    def get(self, key: Key, uid: str) -> Entry[Value] | None:
        return self._entries.get(key, {}).get(uid)

    def job_keys(self, namespace: str | None = None) -> list[Key]:
        """The jobs of a namespace (None: of all) that have children."""
        return [key for key in self._entries if namespace in (None, key.namespace)]

    def put(self, raw: Object, value: Value, owner: str | None) -> Key | None:
        """Stores a child, unless a newer version is stored or it is known to be deleted."""
        key = key_of(raw)
        if key is not None:
            uid, version = raw["metadata"]["uid"], resource_version(raw)
            stored = self.get(key, uid)
            if uid not in self._tombstones and (stored is None or version >= stored.resource_version):
                self._entries[key][uid] = Entry(version, value, owner)
        return key

    def update(self, key: Key, uid: str, value: Value) -> None:
        """Changes the value of a stored child; its version stays, so that the next event replaces it."""
        self._entries[key][uid] = self._entries[key][uid]._replace(value=value)

    def drop(self, raw: Object) -> Key | None:
        """Removes a child that was deleted. A list or an answer from before the deletion does not add it again."""
        key, uid = key_of(raw), raw["metadata"]["uid"]
        remember(self._tombstones, uid)
        if key is not None:
            self._on_drop(key, uid)
            self._remove(key, [uid])
        return key

    def drop_unlisted(self, uids: Set[str], listed: int, keys: Iterable[Key]) -> list[Key]:
        """Removes the children of some jobs that a list did not contain; returns the jobs that lost any.

        uids, listed: all uids of the list, and its resource version. What is newer than the list stays.
        """
        changed = list[Key]()
        for key in keys:
            stored = self._entries.get(key, {})
            dropped = [uid for uid, entry in stored.items() if uid not in uids and entry.resource_version <= listed]
            for uid in dropped:
                self._on_drop(key, uid)
            self._remove(key, dropped)
            if dropped:
                changed.append(key)
        return changed

    def _remove(self, key: Key, uids: Iterable[str]) -> None:
        stored = self._entries.get(key, {})
        for uid in uids:
            stored.pop(uid, None)
        if not stored:
            self._entries.pop(key, None)


def remember(recent: OrderedDict[Any, None], item: Any) -> None:
    """Adds an item, and removes the oldest ones above `MAX_TOMBSTONES`."""
    recent[item] = None
    while len(recent) > MAX_TOMBSTONES:
        recent.popitem(last=False)


def key_of(raw: Object) -> Key | None:
    """The job that a child belongs to, by its label; None for an object that is not the operator's."""
    meta = raw["metadata"]
    name = meta.get("labels", {}).get(naming.JOB)
    return None if name is None else Key(meta["namespace"], name)


def resource_version(raw: Object) -> int:
    """Resource versions grow: Kubernetes promises it since 1.35, and etcd has always done so."""
    return int(raw["metadata"]["resourceVersion"])
