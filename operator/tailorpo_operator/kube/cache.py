"""What the watches have shown of every job, and what our own writes have answered since.

A watch may lag behind, and misses what is deleted while it is broken off: `keep` drops what a list does not show any
more, and what must not be decided on a lag is read afresh.
"""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.planning import observed
from tailorpo_operator.planning.observed import AttemptJob, Observed, Pod

Object = Mapping[str, Any]

WAITING = ("Pending", "Starting", "Restarting")
REMEMBERED = 20_000
"""Deleted objects, and names that were theirs."""


class Key(NamedTuple):
    """Which job."""

    namespace: str
    name: str


class Known(NamedTuple):
    """A job: what is asked of all of them again and again, and the rest as JSON, which takes a tenth of the memory.

    Attributes:
        unready: since when it has waited for its pods; None: it does not.
        several: whether it has several workers.
    """

    version: int
    uid: str
    created: datetime
    phase: str
    unready: datetime | None
    several: bool
    text: bytes


class _Seen(NamedTuple):
    """An object and the version that it was."""

    version: int
    what: Any
    owner: str | None


class Cache:
    """By job. Pods and gangs are kept as values, without what is not needed of them."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Known] = {}
        self._running: set[Key] = set()
        self._several = Counter[str]()
        self._gangs: dict[Key, dict[str, _Seen]] = defaultdict(dict)
        self._pods: dict[Key, dict[str, _Seen]] = defaultdict(dict)
        self._departed: dict[Key, list[_Seen]] = {}
        self._terminating: dict[str, datetime] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._reused: OrderedDict[Key, None] = OrderedDict()

    @property
    def jobs(self) -> Mapping[Key, Known]:
        return self._jobs

    @property
    def running(self) -> Iterable[Key]:
        """Jobs whose status says so."""
        return self._running

    def job(self, key: Key) -> dict[str, Any] | None:
        known = self._jobs.get(key)
        return None if known is None else orjson.loads(known.text)

    def put_job(self, tree: Object) -> Key:
        """A job as it was seen or written, unless a newer one is known."""
        key = Key(tree["metadata"]["namespace"], tree["metadata"]["name"])
        known = self._jobs.get(key)
        if tree["metadata"]["uid"] not in self._gone and (known is None or version(tree) >= known.version):
            self._set(key, _known(tree))
        return key

    def drop_job(self, tree: Object) -> Key:
        """A job that was deleted: not the one that has its name now."""
        key = Key(tree["metadata"]["namespace"], tree["metadata"]["name"])
        self._bury(tree["metadata"]["uid"])
        known = self._jobs.get(key)
        if known is not None and known.uid == tree["metadata"]["uid"]:
            self.forget_job(key)
        return key

    def forget_job(self, key: Key) -> None:
        """It is not there any more, and no watch has said so."""
        self._set(key, None)
        self._departed.pop(key, None)

    def _set(self, key: Key, known: Known | None) -> None:
        before, space = self._jobs.get(key), key.namespace
        if before is not None and (known is None or known.uid != before.uid):
            note(self._reused, key)
        self._several[space] += (known is not None and known.several) - (before is not None and before.several)
        if not self._several[space]:
            del self._several[space]
        if known is None:
            self._jobs.pop(key, None)
        else:
            self._jobs[key] = known
        (self._running.add if known is not None and known.phase == "Running" else self._running.discard)(key)

    def put_gang(self, tree: Object) -> Key | None:
        owner = observed.owner(tree, "TailorPOJob")
        return self._put(self._gangs, tree, observed.attempt_job(tree), owner) if key_of(tree) else None

    def put_pod(self, tree: Object, now: datetime) -> Key | None:
        if key_of(tree) is None:
            return None
        uid, deleted = tree["metadata"]["uid"], "deletionTimestamp" in tree["metadata"]
        since = self._terminating.setdefault(uid, now) if deleted and uid not in self._gone else None
        return self._put(self._pods, tree, observed.pod(tree, since), observed.owner(tree, "Job"))

    def drop_gang(self, tree: Object) -> Key | None:
        if (key := key_of(tree)) is not None:
            note(self._reused, key)
        return self._drop(self._gangs, tree)

    def drop_pod(self, tree: Object) -> Key | None:
        if (key := key_of(tree)) is not None:
            self._depart(key, tree["metadata"]["uid"])
        return self._drop(self._pods, tree)

    def stopping(self, key: Key, attempt_job: AttemptJob) -> None:
        """We have deleted this gang; the watch will say so."""
        if (seen := self._gangs.get(key, {}).get(attempt_job.uid)) is not None:
            self._gangs[key][attempt_job.uid] = seen._replace(what=replace(seen.what, deleting=True))

    def children(self, job: Job) -> Observed:
        """All there is of a job, and what is left of one that had its name."""
        key = Key(job.namespace, job.name)
        attempt_jobs = [seen.what for seen in self._gangs.get(key, {}).values() if seen.owner == job.uid]
        created = observed.time(job.metadata["creationTimestamp"])
        # Of a gang that was deleted, its name may be another's by now: one that nobody came to write down, or one of a
        # job of this name, which went and came again within a second.
        uids = {attempt_job.attempt: attempt_job.uid for attempt_job in attempt_jobs}

        def is_ours(seen: _Seen) -> bool:
            ours = seen.owner is not None and seen.owner == uids.get(seen.what.attempt, seen.owner)
            return ours and bool(seen.what.created >= created)

        own, foreign_pods = list[Pod](), list[Pod]()
        for seen in self._pods.get(key, {}).values():
            # One that no Job controls, as a copy for debugging, is no worker; yet it may write where workers do.
            (own if is_ours(seen) else foreign_pods).append(seen.what)
        judged = max((each.number for each in job.status.attempts if each.end is not None), default=0)
        departed_pods = [seen for seen in self._departed.pop(key, ()) if is_ours(seen) and seen.what.attempt > judged]
        if departed_pods:
            self._departed[key] = departed_pods
        return Observed(
            attempt_jobs=tuple(sorted(attempt_jobs, key=lambda attempt_job: attempt_job.attempt)),
            pods=tuple(sorted(own, key=lambda pod: (pod.attempt, pod.index))),
            foreign_pods=tuple(foreign_pods),
            departed_pods=tuple(seen.what for seen in departed_pods),
            reused=key in self._reused,
        )

    def has_several(self, namespace: str) -> bool:
        """Whether a namespace has a job of several workers."""
        return namespace in self._several

    def gathers(self, key: Key) -> bool:
        """Whether workers of a job's gang may yet look for each other."""
        attempt_jobs = (seen.what for seen in self._gangs.get(key, {}).values())
        return any(
            attempt_job.workers > 1 and not attempt_job.complete and not attempt_job.failed
            for attempt_job in attempt_jobs
        )

    @property
    def gathering(self) -> set[str]:
        """Namespaces where workers may yet look for each other."""
        return {key.namespace for key in self._gangs if self.gathers(key)}

    def has_gangs(self, namespace: str) -> bool:
        """Whether a namespace has a gang of several workers, be its job gone."""
        among = self._among(self._gangs, namespace)
        return any(seen.what.workers > 1 for key in among for seen in self._gangs[key].values())

    def waits(self, key: Key) -> bool:
        """Whether there is a gang, and none of its pods has begun or goes."""
        pods = (seen.what for seen in self._pods.get(key, {}).values())
        return bool(self._gangs.get(key)) and all(pod.phase == "Pending" and pod.terminating is None for pod in pods)

    def leader(self, key: Key) -> Pod | None:
        """The first worker of a job's newest attempt, if it runs and can be asked."""
        if (known := self._jobs.get(key)) is None:
            return None
        pods = [seen.what for seen in self._pods.get(key, {}).values() if seen.owner is not None]
        pods = [pod for pod in pods if pod.created >= known.created]
        newest = max((pod.attempt for pod in pods), default=0)
        running = (pod for pod in pods if pod.attempt == newest and pod.phase == "Running")
        return next((pod for pod in running if pod.index == 0 and pod.address and pod.terminating is None), None)

    def keep_jobs(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """These are all jobs there are (of a namespace), as of a list's version. Returns those that went."""
        among = ((key, known) for key, known in self._jobs.items() if namespace in (None, key.namespace))
        gone = [key for key, known in among if known.uid not in uids and known.version <= listed]
        for key in gone:
            self.forget_job(key)
        return gone

    def keep_gangs(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """These are all gangs there are (of a namespace), as of a list's version. Returns whose have gone."""
        return self._keep(self._gangs, uids, listed, self._among(self._gangs, namespace))

    def keep_pods(self, uids: Set[str], listed: int, namespace: str | None) -> list[Key]:
        """The same of pods."""
        return self._keep(self._pods, uids, listed, self._among(self._pods, namespace))

    def replace_children(
        self, key: Key, attempt_jobs: Iterable[Object], pods: Iterable[Object], listed: int, now: datetime
    ) -> None:
        """All children of one job."""
        kept = {tree["metadata"]["uid"] for tree in attempt_jobs if self.put_gang(tree) is not None}
        self._keep(self._gangs, kept, listed, [key])
        kept = {tree["metadata"]["uid"] for tree in pods if self.put_pod(tree, now) is not None}
        self._keep(self._pods, kept, listed, [key])

    def _keep(self, by_key: dict[Key, dict[str, _Seen]], uids: Set[str], listed: int, keys: Iterable[Key]) -> list[Key]:
        changed = list[Key]()
        for key in keys:
            known = by_key.get(key, {})
            gone = [uid for uid, seen in known.items() if uid not in uids and seen.version <= listed]
            for uid in gone:
                if by_key is self._pods:
                    self._depart(key, uid)
                else:
                    note(self._reused, key)
                del known[uid]
                self._terminating.pop(uid, None)
            if not known:
                by_key.pop(key, None)
            if gone:
                changed.append(key)
        return changed

    @staticmethod
    def _among(by_key: dict[Key, dict[str, _Seen]], namespace: str | None) -> list[Key]:
        return [key for key in by_key if namespace in (None, key.namespace)]

    def _depart(self, key: Key, uid: str) -> None:
        """A pod is gone; until its attempt is judged, how it ended may be told by nobody else."""
        seen = self._pods.get(key, {}).get(uid)
        if key in self._jobs and seen is not None and seen.what.exit is not None:
            self._departed.setdefault(key, []).append(seen)

    def _bury(self, uid: str) -> None:
        """A list or an answer that is older than the deletion must not bring it back."""
        self._terminating.pop(uid, None)
        note(self._gone, uid)

    def _put(
        self, by_key: dict[Key, dict[str, _Seen]], tree: Object, what: AttemptJob | Pod, owner: str | None
    ) -> Key | None:
        key = key_of(tree)
        if key is not None:
            uid, seen = tree["metadata"]["uid"], version(tree)
            known = by_key[key].get(uid)
            if uid not in self._gone and (known is None or seen >= known.version):
                by_key[key][uid] = _Seen(seen, what, owner)
        return key

    def _drop(self, by_key: dict[Key, dict[str, _Seen]], tree: Object) -> Key | None:
        key = key_of(tree)
        self._bury(tree["metadata"]["uid"])
        if key is not None and key in by_key:
            by_key[key].pop(tree["metadata"]["uid"], None)
            if not by_key[key]:
                del by_key[key]
        return key


def note(among: OrderedDict[Any, None], what: Any) -> None:
    """Remembers it for a while."""
    among[what] = None
    while len(among) > REMEMBERED:
        among.popitem(last=False)


def key_of(tree: Object) -> Key | None:
    """Whose child it is, by its label; None for what is not ours."""
    meta = tree["metadata"]
    name = meta.get("labels", {}).get(naming.JOB)
    return None if name is None else Key(meta["namespace"], name)


def version(tree: Object) -> int:
    """Resource versions grow: Kubernetes promises it since 1.35, and etcd has always done so."""
    return int(tree["metadata"]["resourceVersion"])


def several(tree: Object) -> bool:
    """Whether a job has several workers; not what another version of the definition let in."""
    spec = tree.get("spec")
    workers = spec.get("workers") if isinstance(spec, Mapping) else None
    return isinstance(workers, int) and workers > 1


def _known(tree: Object) -> Known:
    meta = {key: value for key, value in tree["metadata"].items() if key not in ("managedFields", "annotations")}
    status = tree.get("status") or {}
    ready = next((each for each in status.get("conditions", ()) if each["type"] == "PodsReady"), {"status": "True"})
    waits = status.get("phase") in WAITING and ready["status"] != "True"
    return Known(
        version(tree),
        meta["uid"],
        observed.time(meta["creationTimestamp"]),
        str(status.get("phase", "Pending")),
        observed.time(ready["lastTransitionTime"]) if waits else None,
        several(tree),
        orjson.dumps({**tree, "metadata": meta}),
    )
