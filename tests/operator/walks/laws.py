"""Invariants of each change of a job; and how its attempts must have ended, from all changes that were observed.

Independent of the operator's plan: from `docs/operator.md` and from what the API server has shown.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from tailorpo_operator.api import naming
from tests.operator.walks.witness import WatchEvent

Object = dict[str, Any]

DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Drained",
    "TerminationByKubelet": "Evicted",
}
CODES = {
    78: "ConfigurationError",
    65: "DataError",
    76: "NotFinite",
    2: "UsageError",
    137: "Killed",
    71: "OutOfResources",
    70: "InternalError",
    69: "Unavailable",
    74: "Stalled",
    130: "Interrupted",
    143: "Stopped",
    75: "Stopped",
}
EXPLAINS = [
    *("Preempted", "OOMKilled", "ConfigurationError", "DataError", "NotFinite", "UsageError", "Killed"),
    *("OutOfResources", "InternalError", "Error", "Unavailable", "PodDeleted", "Stalled", "Interrupted", "Stopped"),
]
"""The first one explains the others. All disruptions are equal, and so are all deletions."""
WISHED = ("Suspended", "SpecChanged", "DeadlineExceeded", "StartDeadlineExceeded")
DONE = ("Completed", "Extended")
FATAL = ("ConfigurationError", "DataError", "NotFinite", "UsageError", "DeadlineExceeded", "StartDeadlineExceeded")
COUNTED = ("OOMKilled", "Killed", "Error", "OutOfResources", "InternalError", "Unavailable", "Stalled", "Interrupted")
FREE = ("Preempted", "Drained", "Evicted", "NodeLost", "Disrupted", "PodDeleted", "JobDeleted", "Stopped")
DEADLINES = {"activeDeadlineSeconds": "DeadlineExceeded", "startDeadlineSeconds": "StartDeadlineExceeded"}
OVER = ("Succeeded", "Failed")


class Laws:
    """Checks the changes of one kind of object after the other, in their order."""

    def __init__(self) -> None:
        self._jobs: dict[str, Object] = {}
        self._ended: dict[str, dict[int, Object]] = defaultdict(dict)
        self._attempt_jobs: dict[str, list[int]] = defaultdict(list)

    def __call__(self, event: WatchEvent) -> None:
        if event.kind == "TailorPOJob" and event.type != "DELETED":
            before = self._jobs.get(event.uid, {})
            self._jobs[event.uid] = event.raw
            status(before.get("status") or {}, event.raw, self._ended[event.uid])
        elif event.kind == "Job" and event.type == "ADDED":
            self._begins(event)

    def _begins(self, event: WatchEvent) -> None:
        """An attempt Job that was deleted at once, before the status had its number, leaves no trace."""
        owners = [each["uid"] for each in event.raw["metadata"].get("ownerReferences", [])]
        assert len(owners) == 1, f"{event.name} is owned by {owners}"
        number, earlier = attempt(event.raw), self._attempt_jobs[owners[0]]
        assert number >= max(earlier, default=0), f"attempt {number} begins after {earlier}"
        known = [each["number"] for each in (self._jobs.get(owners[0], {}).get("status") or {}).get("attempts", [])]
        ended = self._ended[owners[0]]
        assert number not in ended, f"attempt {number} begins again, after {known}"
        earlier.append(number)


def status(before: Object, job: Object, ended: dict[int, Object]) -> None:
    """One write of a status. ended: all attempts that had ended before, and those that have now."""
    after = job.get("status") or {}
    if after == before:
        return
    held = {each["type"]: each for each in after.get("conditions", []) if each["status"] == "True"}
    attempts = after.get("attempts", [])
    numbers = [each["number"] for each in attempts]
    assert numbers == sorted(set(numbers)), f"attempts are {numbers}"
    assert numbers[-1:] >= [each["number"] for each in before.get("attempts", [])][-1:], "attempt numbers only grow"
    assert all("end" in each for each in attempts[:-1]), f"several attempts are open: {attempts}"
    assert after.get("restarts", 0) == max(0, max(numbers, default=1) - 1), f"{after.get('restarts')} restarts"
    for each in attempts:
        known = ended.get(each["number"])
        assert known is None or known == each, f"what has ended changes: {known} to {each}"
    now = [each for each in attempts if "end" in each and each["number"] not in ended]
    ended.update({each["number"]: each for each in now})
    _counted(before, job, now, held)
    _phase(after, held)
    _reason(after, held)
    if set(held) & set(OVER):
        _over(after)
    was = {each["type"] for each in before.get("conditions", []) if each["status"] == "True"} & set(OVER)
    if was:
        for field in ("phase", "completionTime", "failures", "restarts", "attempts", "message"):
            assert before.get(field) == after.get(field), f"terminal is not terminal: {field} of {before} in {after}"
        assert was == set(held) & set(OVER), f"terminal is not terminal: {was} becomes {set(held)}"
    _times(before, after)


def _counted(before: Object, job: Object, now: list[Object], held: dict[str, Object]) -> None:
    after, policy = job["status"], job["spec"].get("runPolicy", {})
    for each in now:
        assert each["reason"] in (*WISHED, *DONE, *FATAL, *COUNTED, *FREE), f"what is {each['reason']}?"
        counted = each["reason"] in (*FATAL, *COUNTED)
        assert each.get("counted") == counted, f"{each['reason']} is counted: {each.get('counted')}"
    failures = before.get("failures", 0) + sum(bool(each["counted"]) for each in now)
    assert after.get("failures", 0) == failures, f"{after.get('failures')} failures, not {failures}: {now}"
    failed = held.get("Failed", {}).get("reason")
    for each in now:
        many = each["counted"] and failures > policy.get("backoffLimit", 3)
        due = each["reason"] if each["reason"] in FATAL else "BackoffLimitExceeded" if many else None
        late = [reason for field, reason in DEADLINES.items() if field in policy]
        assert failed == due or (due is None and failed in late), f"{each} ends as {failed}, not {due}"
        assert ("Succeeded" in held) == (each["reason"] == "Completed"), f"{each} ends as {sorted(held)}"


def _phase(after: Object, held: dict[str, Object]) -> None:
    order = ("Failed", "Succeeded", "Suspended", "Restarting", "Running")
    expected = next(([kind] for kind in order if kind in held), ["Pending", "Starting"])
    assert after.get("phase") in expected, f"phase {after.get('phase')} with {sorted(held)}"


def _reason(after: Object, held: dict[str, Object]) -> None:
    reason, phase = after.get("reason"), after.get("phase")
    if phase == "Failed":
        assert reason == held["Failed"]["reason"], f"failed for {held['Failed']['reason']}, and the reason is {reason}"
    if phase in ("Pending", "Restarting"):
        assert reason, f"{phase} without a reason: {after}"
    if phase in ("Starting", "Succeeded", "Suspended"):
        assert not reason, f"{phase} because of {reason}"


def _over(after: Object) -> None:
    assert after.get("completionTime"), f"over, and nobody knows since when: {after}"
    assert "nextAttemptTime" not in after, f"over, and there is a next attempt: {after}"
    assert all("end" in each for each in after.get("attempts", [])), f"over, and an attempt is open: {after}"


def _times(before: Object, after: Object) -> None:
    old = {each["type"]: each for each in before.get("conditions", [])}
    for each in after.get("conditions", []):
        known = old.get(each["type"])
        if known is not None and known["status"] == each["status"]:
            same = known["lastTransitionTime"] == each["lastTransitionTime"]
            assert same, f"{each['type']} stays {each['status']}, and its time changes"


# From all that was seen


def look_back(history: Iterable[WatchEvent]) -> Iterator[str]:
    """The violations, in the order of resource versions."""
    past = _Past()
    for event in history:
        if event.kind == "Pod":
            yield from past.pod(event)
        elif event.kind == "Job":
            yield from past.attempt_job(event)
        elif event.kind == "TailorPOJob" and event.type != "DELETED":
            yield from past.job(event)


class _Past:
    """The objects that exist at a resource version, and those that existed before."""

    def __init__(self) -> None:
        self._pods: dict[str, Object] = {}
        self._histories: dict[str, list[Object]] = defaultdict(list)
        self._jobs: dict[str, list[Object]] = defaultdict(list)
        self._attempt_jobs: dict[str, set[str]] = defaultdict(set)
        self._deleted: set[str] = set()
        self._gone: set[str] = set()
        self._ghosts: set[str] = set()

    def pod(self, event: WatchEvent) -> Iterator[str]:
        if event.uid not in self._histories and attempt_job_of(event.raw) in self._gone:
            self._ghosts.add(event.uid)  # created before the deletion was observed; soon deleted
        self._histories[event.uid].append(event.raw)
        self._pods[event.uid] = event.raw
        if event.type == "DELETED":
            del self._pods[event.uid]
        living = self._living()
        if len({attempt_job_of(each) for each in living}) > 1 and event.type == "ADDED":
            yield f"two attempt Jobs at a time: {_names(living)}"

    def attempt_job(self, event: WatchEvent) -> Iterator[str]:
        owner = event.raw["metadata"]["ownerReferences"][0]["uid"]
        named = f"{owner} {attempt(event.raw)}"
        self._attempt_jobs[named].add(event.uid)
        if event.type == "ADDED":
            if living := self._living():
                yield f"{event.name} is made while {_names(living)} may run"
            jobs = self._jobs[owner]
            if jobs and over(jobs[-1]):
                yield f"{event.name} is made for a job that is {jobs[-1]['status']['phase']}"
        if event.type == "DELETED":
            self._gone.add(event.uid)
        if event.type == "DELETED" or "deletionTimestamp" in event.raw["metadata"]:
            self._deleted.add(named)

    def job(self, event: WatchEvent) -> Iterator[str]:
        before = self._jobs[event.uid][-1] if self._jobs[event.uid] else {}
        self._jobs[event.uid].append(event.raw)
        for each in _judged(before, event.raw):
            named = f"{event.uid} {each['number']}"
            own = {
                uid: raw_objects
                for uid, raw_objects in self._histories.items()
                if attempt_job_of(raw_objects[0]) in self._attempt_jobs[named]
            }
            present = [self._pods[uid] for uid in own if uid in self._pods]
            yield from _rightly(each, list(own.values()), present, self._jobs[event.uid], named in self._deleted)

    def _living(self) -> list[Object]:
        return [each for uid, each in self._pods.items() if alive(each) and uid not in self._ghosts]


def _names(raw_objects: list[Object]) -> list[str]:
    return [each["metadata"]["name"] for each in raw_objects]


def _judged(before: Object, after: Object) -> list[Object]:
    known = {each["number"] for each in (before.get("status") or {}).get("attempts", []) if "end" in each}
    attempts = (after.get("status") or {}).get("attempts", [])
    return [each for each in attempts if "end" in each and each["number"] not in known]


def _rightly(
    judged: Object, histories: list[list[Object]], present: list[Object], jobs: list[Object], attempt_job_deleted: bool
) -> Iterator[str]:
    """Whether an attempt ended as its pods show. present: the pods that existed when its end was decided."""
    reason, message = judged["reason"], f"attempt {judged['number']} ended as {judged['reason']}"
    owned = [each for each in present if each["metadata"].get("ownerReferences")]  # the others were orphaned on purpose
    living = [each["metadata"]["name"] for each in owned if alive(each)]
    if living:
        yield f"{message} while {living} may run"
    shown = {evidence(raw) for raw_objects in histories for raw in raw_objects} - {None}
    if any("deletionTimestamp" in raw["metadata"] for raw_objects in histories for raw in raw_objects):
        shown |= {"PodDeleted", "NodeLost"}
    if len(histories) > len(present):
        shown |= {"PodDeleted"}
    shown |= {"JobDeleted"} if attempt_job_deleted else set()
    policies = [each["spec"].get("runPolicy", {}) for each in jobs]
    shown |= {"Suspended"} if any(each.get("suspend") for each in policies) else set()
    shown |= {"SpecChanged"} if any(each["spec"] != jobs[0]["spec"] for each in jobs) else set()
    shown |= {"DeadlineExceeded"} if any("activeDeadlineSeconds" in each for each in policies) else set()
    shown |= {"StartDeadlineExceeded"} if any("startDeadlineSeconds" in each for each in policies) else set()
    shown |= {"Extended"} if "Completed" in shown else set()
    if reason not in shown:
        yield f"{message}, and the evidence is only {sorted(map(str, shown))}"
    present_words = [evidence(each) for each in owned]
    if "Completed" in present_words and reason not in DONE:
        yield f"{message}, and its first worker is done"
    evident = [each for each in present_words if each is not None and each not in ("PodDeleted", *DONE)]
    worst = min(evident, key=_weight, default=None)
    if worst is not None and reason not in (*WISHED, *DONE) and _weight(worst) < _weight(reason):
        yield f"{message}, and {worst} explains it"


def evidence(pod: Object) -> str | None:
    """What a pod shows of the end of its attempt."""
    state = pod.get("status") or {}
    ends = [
        each["state"]["terminated"]
        for each in state.get("containerStatuses") or []
        if each["name"] == naming.CONTAINER and "terminated" in each["state"]
    ]
    conditions = state.get("conditions") or []
    disrupted = [each for each in conditions if each["type"] == "DisruptionTarget" and each["status"] == "True"]
    deleted = "deletionTimestamp" in pod["metadata"]
    if ends and ends[0]["exitCode"] == 0:
        return "Completed" if index(pod) == 0 else None
    if disrupted:
        return DISRUPTIONS.get(disrupted[0]["reason"], "Disrupted")
    if ends and ends[0]["reason"] == "OOMKilled":
        return "OOMKilled"
    if ends:
        code = ends[0]["exitCode"]
        return "Stopped" if code == 137 and deleted else CODES.get(code, "Killed" if 128 < code < 193 else "Error")
    return "PodDeleted" if deleted else None


def _weight(reason: str) -> int:
    same = {**dict.fromkeys((*DISRUPTIONS.values(), "Disrupted"), "Preempted"), "JobDeleted": "PodDeleted"}
    return EXPLAINS.index(same.get(reason, reason))


def alive(pod: Object) -> bool:
    """Whether a process of it may run."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def over(job: Object) -> bool:
    """Whether it has Succeeded or Failed."""
    conditions = (job.get("status") or {}).get("conditions", [])
    return any(each["type"] in OVER and each["status"] == "True" for each in conditions)


def attempt(child: Object) -> int:
    return int(child["metadata"]["labels"][naming.ATTEMPT])


def index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def attempt_job_of(pod: Object) -> str:
    """The uid of the Job that created it, even if it was orphaned since."""
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"])
