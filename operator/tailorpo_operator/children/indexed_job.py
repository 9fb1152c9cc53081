"""The objects of a job on a cluster: an Indexed Job for each attempt, and a headless Service for several workers."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import pod_document, pods
from tailorpo_operator.children.pod_document import TooLarge
from tailorpo_trainer.spec.cautions import cautions
from tailorpo_trainer.spec.pod_template import VolumeMount

__all__ = [
    "TooLarge",
    "attempt",
    "is_outdated",
    "is_rendezvous",
    "queue",
    "rendezvous",
    "service",
    "template_hash",
    "wants_gang",
    "warnings",
    "with_owner",
]

Fields = dict[str, Any]


def service(job: Job) -> Fields | None:
    """The Service by which workers find each other; None for one worker."""
    return rendezvous(job.metadata.get("namespace")) if job.spec.workers > 1 else None


def rendezvous(namespace: str | None) -> Fields:
    """A Service for all jobs of a namespace: it gives first workers a DNS name, even before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(namespace, naming.RENDEZVOUS, naming.COMMON),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {**naming.COMMON, naming.INDEX: "0"},
            "ports": [{"name": naming.MASTER, "port": naming.MASTER_PORT}],
        },
    }


def is_rendezvous(raw: Mapping[str, Any]) -> bool:
    """Whether a Service does what `rendezvous` is for, no matter who created it."""
    spec, wanted = raw["spec"], rendezvous(None)["spec"]
    return all(spec.get(field) == wanted[field] for field in ("clusterIP", "publishNotReadyAddresses", "selector"))


def attempt(job: Job, number: int, image: str, *, with_ids: bool = True) -> Fields:
    """The Job of an attempt: its pods start and end together, and none is replaced.

    image: the trainer's image if `spec.template.image` names none. with_ids: whether pods name a user and group.
    Raises `TooLarge`.
    """
    name, waits_in = job.metadata["name"], queue(job)
    labels = {**job.copied_labels, **job.spec.template.labels, **naming.of_attempt(name, number)}
    labels |= {naming.QUEUE: waits_in} if waits_in else {}
    annotations = {**job.copied_annotations, **job.spec.template.annotations}
    metadata = _metadata(job.metadata.get("namespace"), naming.attempt_name(name, number), labels)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | ({"annotations": annotations} if annotations else {}),
        "spec": {
            "completionMode": "Indexed",
            "completions": job.spec.workers,
            "parallelism": job.spec.workers,
            # Data-parallel training cannot continue without one of its workers, or with a new one in its place, which
            # is what the `Ignore` of a podFailurePolicy would create.
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            **(_gang(job) if wants_gang(job) else {}),
            "template": pods.template(job, number, image, with_ids=with_ids),
        },
    }


def template_hash(job: Job) -> str:
    """Hexadecimal digits that differ if an attempt's Job would: 16 for the spec, 16 for what is copied of the metadata.

    They depend on neither its number nor the default image, so two operators of one version agree. Raises `TooLarge`.
    """
    made = _digest(attempt(job.copying(()), 1, ""))
    copied = [job.copied_labels, job.copied_annotations]
    return made + (_digest(copied) if any(copied) else "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def is_outdated(job: Job, generation: int, hash_of_template: str) -> bool:
    """Whether an edit of the job has changed what an attempt's pods are made of. Unknown for a Job without the hash."""
    if not hash_of_template:
        return False
    copied = [job.copied_labels, job.copied_annotations]
    if generation == job.generation:  # of an edit of metadata, too; and another version may have made the Job
        return hash_of_template[16:] != (_digest(copied) if any(copied) else "")
    try:
        return template_hash(job) != hash_of_template
    except TooLarge:
        return False


def wants_gang(job: Job) -> bool:
    """Whether the scheduler shall place all workers or none. A queue does so by itself."""
    return job.spec.workers > 1 and job.spec.scheduling.gang != "None" and queue(job) is None


def queue(job: Job) -> str | None:
    """The queue of Kueue that the attempt's Job waits in: of the spec, or of a label, as for Kueue's other kinds."""
    labels = {**job.copied_labels, **job.spec.template.labels}
    return job.spec.scheduling.queue_name or labels.get(naming.QUEUE)


def _gang(job: Job) -> Fields:
    """The field of Kubernetes' own gang scheduling, alpha in 1.37; a server without it drops the field."""
    return {"scheduling": {"schedulingPolicy": {"gang": {"minCount": job.spec.workers}}}}


def with_owner(child: Fields, job: Job) -> Fields:
    """The attempt's Job with an owner reference, so that it is deleted with the job, and with what it was made from.

    (`blockOwnerDeletion` would need permission for finalizers.)
    """
    owner = {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "name": job.metadata["name"],
        "uid": job.metadata["uid"],
        # Kubernetes schedules a gang only for a Job without a controller; it is deleted with its owner anyway.
        "controller": "scheduling" not in child["spec"],
    }
    made_from = {naming.GENERATION: str(job.generation), naming.TEMPLATE_HASH: template_hash(job)}
    annotations = {**child["metadata"].get("annotations", {}), **made_from}
    return {**child, "metadata": {**child["metadata"], "annotations": annotations, "ownerReferences": [owner]}}


def warnings(job: Job) -> list[str]:
    """Problems that the user most likely does not want, as messages."""
    return [*cautions(job.spec), *_storage(job), *_relative_paths(job)]


LOST = "which goes with the pod: what is trained is lost with it"
READ_ONLY = "which cannot be written"
VOLATILE = {
    "empty_dir": LOST,
    "ephemeral": LOST,
    "host_path": "which is a folder of one node: an attempt on another node begins anew",
    "config_map": READ_ONLY,
    "secret": READ_ONLY,
    "projected": READ_ONLY,
    "downward_api": READ_ONLY,
    "image": READ_ONLY,
}
"""Volume sources that keep nothing for the next pod, and why."""


def _storage(job: Job) -> Iterator[str]:
    storage, field = pod_document.in_pod(job.spec).checkpoint.storage, "spec.checkpoint.storage"
    if storage is None:
        yield f"{field} is not set: what is trained is lost with the pod; name an s3:// prefix or a mounted folder"
    elif not storage.startswith("s3://"):
        path = storage.removeprefix("file://")
        mount = _mount(job, path)
        if mount is None:
            yield f"{field}: {path} is on none of spec.template.volumeMounts: what is trained is lost with the pod"
            return
        volume = next(volume for volume in job.spec.template.volumes if volume.name == mount.name)
        given = (kind for kind in VOLATILE if getattr(volume, kind) is not None)
        problem = READ_ONLY if mount.read_only else VOLATILE.get(next(given, ""))
        if problem:
            yield f"{field}: {path} is on volume {mount.name!r}, {problem}"


def _relative_paths(job: Job) -> Iterator[str]:
    spec = job.spec
    files = {
        "spec.prompts.file": spec.prompts.file,
        "spec.evaluation.prompts.file": spec.evaluation.prompts.file if spec.evaluation.prompts else None,
        "spec.checkpoint.caFile": spec.checkpoint.ca_file,
    }
    for field, path in files.items():
        if path is not None and pod_document.is_relative(path) and _mount(job, f"{pod_document.WORK}/{path}") is None:
            yield (
                f"{field}: {path!r} starts from {pod_document.WORK} in a pod, where nothing is but what "
                "spec.template.volumeMounts puts there"
            )


def _mount(job: Job, path: str) -> VolumeMount | None:
    """The mount of the user's volume that holds a path."""
    found = [each for each in job.spec.template.volume_mounts if PurePosixPath(path).is_relative_to(each.mount_path)]
    return max(found, key=lambda each: len(PurePosixPath(each.mount_path).parts), default=None)


def _metadata(namespace: str | None, name: str, labels: dict[str, str]) -> Fields:
    return {"name": name, **({"namespace": namespace} if namespace else {}), "labels": labels}
