"""Whether a status agrees with the cluster, once nothing changes any more."""

from collections.abc import Collection, Iterator
from typing import Any

from tests.operator.walks.laws import OVER, alive, attempt, attempt_job_of

Object = dict[str, Any]


def lies(
    job: Object, attempt_jobs: list[Object], pods: list[Object], left: Collection[str], dark: Collection[str]
) -> Iterator[str]:
    """What differs from the status, or is not yet as the spec wants it.

    left: uids of attempt Jobs whose pods a user has orphaned, and has to end.
    dark: nodes without power.
    """
    status, spec = job.get("status") or {}, job["spec"]
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    held = {kind for kind, each in conditions.items() if each["status"] == "True"}
    open_ = [each for each in status.get("attempts", []) if "end" not in each]
    own = [each for each in attempt_jobs if job["metadata"]["uid"] in owners(each)]
    orphans = sorted(each["metadata"]["name"] for each in pods if alive(each) and attempt_job_of(each) in left)
    living = sorted(each["metadata"]["name"] for each in pods if alive(each) and attempt_job_of(each) not in left)
    if status.get("observedGeneration") != job["metadata"]["generation"]:
        yield "it is about an older spec"
    if going := [each["metadata"]["name"] for each in _going(attempt_jobs, pods, dark)]:
        yield f"{going} are on their way out"
    if len(own) > 2:
        yield f"there are attempt Jobs of {[attempt(each) for each in own]}"
    if orphans and not held & set(OVER):
        if open_ or any(name not in str(status.get("message")) for name in orphans[:3]):
            yield f"it waits for {orphans}, and says {status.get('message')}"
        return
    if held & set(OVER) or spec.get("runPolicy", {}).get("suspend"):
        if living:
            yield f"{living} may run"
        if running := [each["metadata"]["name"] for each in own if (each.get("status") or {}).get("active")]:
            yield f"{running} are active"
        if open_:
            yield f"attempt {open_} is open"
        if held & {"Running", "Restarting", "PodsReady"}:
            yield f"nothing runs, and it is {sorted(held)}"
        if status.get("phase") not in (*OVER, "Suspended"):
            yield f"it is {status.get('phase')}"
        return
    if not open_:
        yield "no attempt is open"
        return
    number = open_[0]["number"]
    newest = max(own, key=attempt, default=None)
    if newest is None or attempt(newest) != number:
        yield f"attempt {number} has no Job"
        return
    mine = [each for each in pods if newest["metadata"]["uid"] in owners(each)]
    if foreign_pods := sorted(set(living) - {each["metadata"]["name"] for each in mine}):
        yield f"{foreign_pods} may run beside attempt {number}"
    yield from _open_attempt(status, conditions, newest, mine)


def unnamed(attempt_jobs: list[Object], services: list[Object]) -> Iterator[str]:
    """Attempt Jobs whose workers could not find rank 0, for there is no Service."""
    for each in attempt_jobs:
        conditions = (each.get("status") or {}).get("conditions") or []
        ends = "deletionTimestamp" in each["metadata"] or any(held["status"] == "True" for held in conditions)
        if each["spec"]["completions"] > 1 and not ends and not services:
            yield f"{each['metadata']['name']} has no Service"


def _open_attempt(
    status: Object, conditions: dict[str, Object], attempt_job: Object, pods: list[Object]
) -> Iterator[str]:
    """Of an attempt that is open."""
    held = {kind for kind, each in conditions.items() if each["status"] == "True"}
    workers = attempt_job["spec"]["completions"]
    if failed := [each["metadata"]["name"] for each in pods if each["status"].get("phase") == "Failed"]:
        yield f"{failed} have failed, and their attempt goes on"
    if len(pods) != workers:
        yield f"{len(pods)} of {workers} pods are there"
    ready = len(pods) == workers and all(_ready(each) for each in pods)
    if ready != ("PodsReady" in held):
        yield f"all pods are ready: {ready}, and PodsReady says {conditions.get('PodsReady')}"
    if ready and (status.get("phase") != "Running" or "Restarting" in held):
        yield f"all pods run, and it is {status.get('phase')}"
    if not ready and not any(each["status"].get("phase") == "Running" for each in pods) and "Running" in held:
        yield "no pod runs, and it is Running"
    first = attempt_job["metadata"]["labels"]["tailorpo.dev/attempt"] == "1"
    if not ready and first and "Running" not in held and status.get("phase") not in ("Pending", "Starting"):
        yield f"the first attempt has not begun to run, and it is {status.get('phase')}"
    if unscheduled := [each["metadata"]["name"] for each in pods if _unschedulable(each)]:
        condition = conditions.get("PodsReady", {})
        if condition.get("reason") != "Unschedulable":
            yield f"{unscheduled} find no node, and PodsReady says {condition}"


def _going(attempt_jobs: list[Object], pods: list[Object], dark: Collection[str]) -> Iterator[Object]:
    """Objects that are being deleted, without those that have to wait for their node's power."""
    waiting = [each for each in pods if waits_for_power(each, dark)]
    held = {uid for each in waiting for uid in owners(each)}
    for each in [*attempt_jobs, *pods]:
        if "deletionTimestamp" in each["metadata"] and each not in waiting and each["metadata"]["uid"] not in held:
            yield each


def waits_for_power(pod: Object, dark: Collection[str]) -> bool:
    """Whether a pod does not run any more, but only its node, which has no power, could confirm its deletion."""
    return "deletionTimestamp" in pod["metadata"] and not alive(pod) and pod["spec"].get("nodeName") in dark


def owners(raw: Object) -> list[str]:
    return [each["uid"] for each in raw["metadata"].get("ownerReferences", [])]


def _ready(pod: Object) -> bool:
    state = pod["status"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in state.get("conditions") or [])
    return ready or state.get("phase") == "Succeeded"


def _unschedulable(pod: Object) -> bool:
    conditions = {each["type"]: each for each in pod["status"].get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    return bool(scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable")
