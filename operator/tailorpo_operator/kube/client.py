"""What the operator does with the API server, and nothing that it has no right to."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION, Job
from tailorpo_operator.kube.transport import Object, RefusedError, Transport, merge_patch
from tailorpo_operator.planning.observed import AttemptJob, Pod, Reason, owner

NAMED = f"metadata.name={naming.RENDEZVOUS}"
"""The API server takes it for a name, so that no right to see other Services is needed."""

Use = Callable[[Object], object]


class Cluster:
    """Typed by what is meant; see `wire.py` for what is sent."""

    def __init__(self, wire: Transport) -> None:
        self._wire = wire

    # Jobs

    async def job(self, namespace: str, name: str) -> Object | None:
        return await _unless_gone(self._wire.request("get", _custom(namespace, name)))

    async def jobs(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with each of them. Returns the version of the list."""
        return await self._wire.each(_custom(namespace), use)

    async def serves(self, namespace: str | None = None) -> None:
        """Raises `RefusedError` where they are not defined, or not ours to see; reads next to nothing of them."""
        await self._wire.request("list", _custom(namespace), query={"limit": "1"})

    async def write_status(self, tree: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
        """Replaces the status of the version that `tree` is. Raises `RefusedError` 409 if there is a newer one."""
        meta = tree["metadata"]
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"], "uid": meta["uid"]},
            "status": merge_patch(tree.get("status") or {}, status),
        }
        return await self._wire.request("patch", f"{_custom(meta['namespace'], meta['name'])}/status", patch)

    async def delete_job(self, job: Job) -> None:
        await _unless_gone(self._delete(_custom(job.namespace, job.name), job.uid))

    # Children

    async def keeps_gangs(self, child: Object) -> bool:
        """Whether the API server keeps what a Job says of gang scheduling: one that has none drops it."""
        path = path_of(child)
        made = await self._wire.request("create", path, child, {"dryRun": "All"})
        return "scheduling" in made["spec"]

    async def create(self, child: Object) -> Object:
        """Makes a child, or returns it if it is its owner's already. Raises `RefusedError` if it is another's."""
        try:
            made = await self._make(child)
        except RefusedError as refusal:
            if "scheduling" not in child["spec"] or 'unknown field "spec.scheduling' not in str(refusal):
                raise
            spec = {name: value for name, value in child["spec"].items() if name != "scheduling"}  # before 1.37
            return await self.create({**child, "spec": spec})
        if made is not None:
            return made
        wanted, there = child["metadata"]["ownerReferences"][0], await self._there(child)
        if there is not None and owner(there, wanted["kind"]) == wanted["uid"]:
            return there
        named = f"{child['kind']} {child['metadata']['name']}"
        references = (there or {}).get("metadata", {}).get("ownerReferences", ())
        if there is None or any(
            (each["kind"], each["name"]) == (wanted["kind"], wanted["name"]) for each in references
        ):
            raise RefusedError(409, "NameTaken", f"{named} of a deleted {wanted['kind']} of this name is still there")
        words = f"{named} exists and is not of this {wanted['kind']}: delete it or rename the job"
        raise RefusedError(409, "NameTaken", words)

    async def create_service(self, service: Object) -> Object:
        """Makes what no job owns, or returns what has its name."""
        while True:
            if (made := await self._make(service) or await self._there(service)) is not None:
                return made

    async def _make(self, child: Object) -> Object | None:
        """None where there is one of this name."""
        try:  # strictly, or a misspelt field of a pod template is dropped in silence
            return await self._wire.request("create", path_of(child), child, {"fieldValidation": "Strict"})
        except RefusedError as refusal:
            if refusal.status != 409 or refusal.reason != "AlreadyExists":
                raise
        return None

    async def _there(self, child: Object) -> Object | None:
        return await _unless_gone(self._wire.request("get", f"{path_of(child)}/{child['metadata']['name']}"))

    async def children(self, namespace: str, name: str) -> tuple[list[Object], list[Object], int]:
        """Gangs and pods of a job, and the version that both are at least of."""
        selector = f"{naming.JOB}={name}"
        attempt_jobs, first = await self._wire.all(_path("batch/v1", "jobs", namespace), labelSelector=selector)
        pods, second = await self._wire.all(_path("v1", "pods", namespace), labelSelector=selector)
        return attempt_jobs, pods, min(first, second)

    async def attempt_jobs(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with the gangs of all jobs. Returns the version of the list."""
        return await self._wire.each(_path("batch/v1", "jobs", namespace), use, labelSelector=naming.JOB)

    async def pods(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with the pods of all jobs. Returns the version of the list."""
        return await self._wire.each(_path("v1", "pods", namespace), use, labelSelector=naming.JOB)

    def watch_gangs(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._wire.watch(_path("batch/v1", "jobs", namespace), version, labelSelector=naming.JOB)

    def watch_pods(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._wire.watch(_path("v1", "pods", namespace), version, labelSelector=naming.JOB)

    async def services(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with each that has the name of the workers' own. Returns the version of the list."""
        return await self._wire.each(_path("v1", "services", namespace), use, fieldSelector=NAMED)

    def watch_services(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._wire.watch(_path("v1", "services", namespace), version, fieldSelector=NAMED)

    async def delete_service(self, namespace: str, name: str, uid: str) -> None:
        await _unless_gone(self._delete(f"{_path('v1', 'services', namespace)}/{name}", uid))

    async def stop(self, namespace: str, attempt_job: AttemptJob) -> None:
        """Deletes a gang's Job. Pods are orphaned unless the policy says otherwise."""
        await _unless_gone(self._delete(f"{_path('batch/v1', 'jobs', namespace)}/{attempt_job.name}", attempt_job.uid))

    async def delete_pod(self, namespace: str, pod: Pod, *, force: bool) -> None:
        grace = 0 if force else None
        await _unless_gone(self._delete(f"{_path('v1', 'pods', namespace)}/{pod.name}", pod.uid, grace))

    # Events

    async def announce(self, event: Object) -> None:
        """An event, unless it was sent before."""
        path = path_of(event)
        try:
            await self._wire.request("create", path, event)
        except RefusedError as refusal:
            if refusal.status != 409:
                raise

    async def warning(self, namespace: str, uid: str) -> Reason | None:
        """The newest Warning event about an object."""
        selector = f"involvedObject.uid={uid},type=Warning"
        events, _ = await self._wire.all(_path("v1", "events", namespace), fieldSelector=selector)
        newest = max(events, key=_last_time, default=None)
        return None if newest is None else Reason(newest.get("reason") or "", newest.get("message") or "")

    async def _delete(self, path: str, uid: str, grace: int | None = None) -> Object:
        options: Object = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        return await self._wire.request("delete", path, options)


async def _unless_gone(request: Awaitable[Object]) -> Object | None:
    """None where there is no such object, or another has its name."""
    try:
        return await request
    except RefusedError as refusal:
        if refusal.status == 404 or (refusal.status == 409 and refusal.reason == "Conflict"):
            return None
        raise


def path_of(tree: Object) -> str:
    """Where an object is made."""
    return _path(tree["apiVersion"], f"{tree['kind'].lower()}s", tree["metadata"]["namespace"])


def _custom(namespace: str | None = None, name: str | None = None) -> str:
    return _path(f"{GROUP}/{VERSION}", PLURAL, namespace) + (f"/{quote(name)}" if name is not None else "")


def _path(version: str, plural: str, namespace: str | None) -> str:
    root = "/apis/" + version if "/" in version else "/api/" + version
    return root + (f"/namespaces/{quote(namespace)}" if namespace is not None else "") + f"/{plural}"


def _last_time(event: Object) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(time) for time in times if time), event["metadata"]["creationTimestamp"])
