"""The requests that the operator makes, each within its rights in `manifests/base/rbac.yaml`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION, Job
from tailorpo_operator.kube.transport import Object, RefusedError, Transport, merge_patch
from tailorpo_operator.planning.observed import AttemptJob, Pod, Reason, owner

NAMED = f"metadata.name={naming.RENDEZVOUS}"
"""For the API server a request for one name, so that no right to read other Services is needed."""

Use = Callable[[Object], object]


class KubeClient:
    """A client of the API server; see `transport.py` for retries and errors."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    # Jobs

    async def get_job(self, namespace: str, name: str) -> Object | None:
        return await _unless_missing(self._transport.request("get", _custom(namespace, name)))

    async def list_jobs(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with each job. Returns the resource version of the list."""
        return await self._transport.list_each(_custom(namespace), use)

    async def check_served(self, namespace: str | None = None) -> None:
        """Raises `RefusedError` where jobs are not defined, or the operator may not list them. Reads one job."""
        await self._transport.request("list", _custom(namespace), query={"limit": "1"})

    async def served_schema(self) -> Object:
        """The schema of jobs that the API server serves, with its defaults; empty if it publishes none."""
        page = await self._transport.request("get", f"/openapi/v3/apis/{GROUP}/{VERSION}")
        kind = {"group": GROUP, "version": VERSION, "kind": Job.model_fields["kind"].default}
        schemas = page.get("components", {}).get("schemas", {}).values()
        return next((each for each in schemas if kind in each.get("x-kubernetes-group-version-kind", ())), {})

    async def serves_group(self, name: str) -> bool:
        """Whether the API server has such a group; every user may ask. False if it does not tell."""
        try:
            groups = (await self._transport.request("get", "/apis")).get("groups", ())
        except RefusedError:
            return False
        return any(each["name"] == name for each in groups)

    async def write_status(self, raw: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
        """Replaces the status of a job. Raises `RefusedError` 409 if there is a newer version than `raw`."""
        meta = raw["metadata"]
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"], "uid": meta["uid"]},
            "status": merge_patch(raw.get("status") or {}, status),
        }
        return await self._transport.request("patch", f"{_custom(meta['namespace'], meta['name'])}/status", patch)

    async def delete_job(self, job: Job) -> None:
        await _unless_missing(self._delete(_custom(job.namespace, job.name), job.uid))

    # Children

    async def supports_gang_scheduling(self, child: Object) -> bool:
        """Whether the API server keeps a Job's `spec.scheduling`: one without gang scheduling drops it."""
        created = await self._transport.request("create", path_of(child), child, {"dryRun": "All"})
        return "scheduling" in created["spec"]

    async def create_attempt_job(self, child: Object) -> Object:
        """Creates it, or returns the existing one of the same owner. Raises `RefusedError` if its owner is another."""
        try:
            created = await self._create(child)
        except RefusedError as refusal:
            if "scheduling" not in child["spec"] or 'unknown field "spec.scheduling' not in str(refusal):
                raise
            # Kubernetes before 1.37 does not know the field.
            spec = {name: value for name, value in child["spec"].items() if name != "scheduling"}
            return await self.create_attempt_job({**child, "spec": spec})
        if created is not None:
            return created
        wanted, existing = child["metadata"]["ownerReferences"][0], await self._get_existing(child)
        if existing is not None and owner(existing, wanted["kind"]) == wanted["uid"]:
            return existing
        title = f"{child['kind']} {child['metadata']['name']}"
        references = (existing or {}).get("metadata", {}).get("ownerReferences", ())
        if existing is None or any(
            (each["kind"], each["name"]) == (wanted["kind"], wanted["name"]) for each in references
        ):
            raise RefusedError(409, "NameTaken", f"{title} of a deleted {wanted['kind']} of this name is still there")
        message = f"{title} exists and is not of this {wanted['kind']}: delete it or rename the job"
        raise RefusedError(409, "NameTaken", message)

    async def create_service(self, service: Object) -> Object:
        """Creates a Service that no job owns, or returns the existing one of its name."""
        while True:
            if (current := await self._create(service) or await self._get_existing(service)) is not None:
                return current

    async def _create(self, child: Object) -> Object | None:
        """None if an object of this name exists."""
        try:  # strictly: otherwise the API server silently drops a misspelt field of a pod template
            return await self._transport.request("create", path_of(child), child, {"fieldValidation": "Strict"})
        except RefusedError as refusal:
            if refusal.status != 409 or refusal.reason != "AlreadyExists":
                raise
        return None

    async def _get_existing(self, child: Object) -> Object | None:
        return await _unless_missing(self._transport.request("get", f"{path_of(child)}/{child['metadata']['name']}"))

    async def list_children(self, namespace: str, name: str) -> tuple[list[Object], list[Object], int]:
        """Attempt Jobs and pods of a job, and the older of the resource versions of the two lists."""
        selector = f"{naming.JOB}={name}"
        attempt_jobs, first = await self._transport.list_all(
            _path("batch/v1", "jobs", namespace), labelSelector=selector
        )
        pods, second = await self._transport.list_all(_path("v1", "pods", namespace), labelSelector=selector)
        return attempt_jobs, pods, min(first, second)

    async def list_attempt_jobs(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with the attempt Jobs of all jobs. Returns the resource version of the list."""
        return await self._transport.list_each(_path("batch/v1", "jobs", namespace), use, labelSelector=naming.JOB)

    async def list_pods(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with the pods of all jobs. Returns the resource version of the list."""
        return await self._transport.list_each(_path("v1", "pods", namespace), use, labelSelector=naming.JOB)

    def watch_attempt_jobs(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._transport.watch(_path("batch/v1", "jobs", namespace), version, labelSelector=naming.JOB)

    def watch_pods(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._transport.watch(_path("v1", "pods", namespace), version, labelSelector=naming.JOB)

    async def list_services(self, namespace: str | None, use: Use) -> int:
        """Calls `use` with each Service of the rendezvous' name. Returns the resource version of the list."""
        return await self._transport.list_each(_path("v1", "services", namespace), use, fieldSelector=NAMED)

    def watch_services(self, namespace: str | None, version: int) -> AsyncIterator[tuple[str, Object]]:
        return self._transport.watch(_path("v1", "services", namespace), version, fieldSelector=NAMED)

    async def delete_service(self, namespace: str, name: str, uid: str) -> None:
        await _unless_missing(self._delete(f"{_path('v1', 'services', namespace)}/{name}", uid))

    async def delete_attempt_job(self, namespace: str, attempt_job: AttemptJob) -> None:
        path = f"{_path('batch/v1', 'jobs', namespace)}/{attempt_job.name}"
        await _unless_missing(self._delete(path, attempt_job.uid))

    async def delete_pod(self, namespace: str, pod: Pod, *, force: bool) -> None:
        grace = 0 if force else None
        await _unless_missing(self._delete(f"{_path('v1', 'pods', namespace)}/{pod.name}", pod.uid, grace))

    # Events

    async def create_event(self, event: Object) -> None:
        """Creates an event, unless it was created before."""
        try:
            await self._transport.request("create", path_of(event), event)
        except RefusedError as refusal:
            if refusal.status != 409:
                raise

    async def latest_warning(self, namespace: str, uid: str) -> Reason | None:
        """The newest Warning event about an object."""
        selector = f"involvedObject.uid={uid},type=Warning"
        events, _ = await self._transport.list_all(_path("v1", "events", namespace), fieldSelector=selector)
        newest = max(events, key=_last_time, default=None)
        return None if newest is None else Reason(newest.get("reason") or "", newest.get("message") or "")

    async def _delete(self, path: str, uid: str, grace: int | None = None) -> Object:
        # For a Job the default policy is Orphan: its pods would stay.
        options: Object = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        return await self._transport.request("delete", path, options)


async def _unless_missing(request: Awaitable[Object]) -> Object | None:
    """None if there is no such object, or its name belongs to another object."""
    try:
        return await request
    except RefusedError as refusal:
        if refusal.status == 404 or (refusal.status == 409 and refusal.reason == "Conflict"):
            return None
        raise


def path_of(raw: Object) -> str:
    """The path of the collection that an object belongs to."""
    return _path(raw["apiVersion"], f"{raw['kind'].lower()}s", raw["metadata"]["namespace"])


def _custom(namespace: str | None = None, name: str | None = None) -> str:
    return _path(f"{GROUP}/{VERSION}", PLURAL, namespace) + (f"/{quote(name)}" if name is not None else "")


def _path(version: str, plural: str, namespace: str | None) -> str:
    root = "/apis/" + version if "/" in version else "/api/" + version
    return root + (f"/namespaces/{quote(namespace)}" if namespace is not None else "") + f"/{plural}"


def _last_time(event: Object) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(time) for time in times if time), event["metadata"]["creationTimestamp"])
