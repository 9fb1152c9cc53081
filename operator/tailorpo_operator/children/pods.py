"""The pods of an attempt: one hardened container with the trainer, and all fields of `spec.template`."""

from collections.abc import Iterable
from posixpath import normpath
from typing import Any

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import Job
from tailorpo_operator.children import pod_document
from tailorpo_trainer.spec.pod_template import ModelCache
from tailorpo_trainer.spec.pod_template_rules import DOCUMENT_FOLDER, SHARED_MEMORY
from tailorpo_trainer.spec.types import SpecModel

Fields = dict[str, Any]

USER = 65_532
"""The trainer's user, unless the document sets another: no user of a node has this ID."""

POD_SECURITY: Fields = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Fields = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def template(job: Job, attempt: int, image: str, *, with_ids: bool = True) -> Fields:
    """The pod template of an attempt. with_ids: whether pods name a user and group. Raises `TooLarge`."""
    pod_template, name = job.spec.template, job.metadata["name"]
    return {
        "metadata": {
            "labels": {**_copied_labels(job), **naming.of_attempt(name, attempt)},
            "annotations": {
                "kubectl.kubernetes.io/default-container": naming.CONTAINER,
                **job.copied_annotations,
                **pod_template.annotations,
                naming.DOCUMENT: pod_document.text(job),
            },
        },
        "spec": _non_empty(
            restartPolicy="Never",
            terminationGracePeriodSeconds=job.spec.run_policy.termination_grace_period_seconds,
            subdomain=naming.RENDEZVOUS if job.spec.workers > 1 else None,
            serviceAccountName=pod_template.service_account_name,
            automountServiceAccountToken=False,
            enableServiceLinks=False,
            hostNetwork=pod_template.host_network or None,
            dnsPolicy="ClusterFirstWithHostNet" if pod_template.host_network else None,
            runtimeClassName=pod_template.runtime_class_name,
            schedulerName=job.spec.scheduling.scheduler_name,
            priorityClassName=job.spec.scheduling.priority_class_name,
            nodeSelector=pod_template.node_selector,
            tolerations=_dump_all(pod_template.tolerations),
            affinity=_dump(pod_template.affinity),
            topologySpreadConstraints=pod_template.topology_spread_constraints,
            resourceClaims=pod_template.resource_claims,
            imagePullSecrets=_dump_all(pod_template.image_pull_secrets),
            securityContext=_pod_security(with_ids)
            if pod_template.pod_security_context is None
            else pod_template.pod_security_context,
            volumes=_volumes(job),
            containers=[_container(job, attempt, image)],
        ),
    }


def _pod_security(with_ids: bool) -> Fields:
    """OpenShift gives each namespace user and group IDs of its own, and refuses pods with others."""
    return {name: value for name, value in POD_SECURITY.items() if with_ids or value != USER}


def _copied_labels(job: Job) -> dict[str, str]:
    """Without the queue's: a pod with that label would wait in the queue beside its Job."""
    labels = {**job.copied_labels, **job.spec.template.labels}
    return {key: value for key, value in labels.items() if key != naming.QUEUE}


def _container(job: Job, attempt: int, image: str) -> Fields:
    pod_template, secret = job.spec.template, job.spec.checkpoint.secret_name
    return _non_empty(
        name=naming.CONTAINER,
        image=pod_template.image or image,
        imagePullPolicy=pod_template.image_pull_policy,
        command=["tailorpo"],
        args=_arguments(job, attempt),
        workingDir=pod_document.WORK,
        env=_variables(job, attempt),
        envFrom=[*([{"secretRef": {"name": secret}}] if secret else []), *_dump_all(pod_template.env_from)],
        ports=[{"name": port, "containerPort": number} for port, number in naming.ports(job.spec.workers).items()],
        resources=_dump(pod_template.resources),
        volumeMounts=_mounts(job),
        securityContext=CONTAINER_SECURITY if pod_template.security_context is None else pod_template.security_context,
        terminationMessagePolicy="FallbackToLogsOnError",
    )


def _arguments(job: Job, attempt: int) -> list[str]:
    spec, name = job.spec, job.metadata["name"]
    arguments = ["run", f"{DOCUMENT_FOLDER}/{pod_document.FILE}"]
    if spec.workers * spec.processes_per_worker > 1:
        arguments.append(f"--processes={spec.processes_per_worker}")
    if spec.workers > 1:
        arguments += [
            f"--nodes={spec.workers}",
            "--node-rank=$(JOB_COMPLETION_INDEX)",
            f"--master-addr={naming.attempt_name(name, attempt)}-0.{naming.RENDEZVOUS}",
            f"--master-port={naming.MASTER_PORT}",
        ]
    return arguments


def _variables(job: Job, attempt: int) -> list[Fields]:
    """The operator's variables, then the user's, which replace those of the same name where a document may set it."""
    pod_template = job.spec.template
    values = {
        "TAILORPO_ATTEMPT": str(attempt),
        "TAILORPO_METRICS_HOST": "::",
        "TAILORPO_METRICS_PORT": str(naming.METRICS_PORT),
        "TAILORPO_METRICS_STALL_SECONDS": str(job.spec.run_policy.stall_timeout_seconds),
        "HOME": pod_document.WORK,
    }
    if pod_template.model_cache:  # XDG_CACHE_HOME is for models from S3
        values |= dict.fromkeys(("HF_HOME", "XDG_CACHE_HOME"), pod_template.model_cache.mount_path)
    ours: list[Fields] = [{"name": name, "value": value} for name, value in values.items()]
    if pod_template.hub_token:
        ours.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": _dump(pod_template.hub_token)}})
    theirs = _dump_all(pod_template.env)
    return [*_unless_named(ours, theirs, "name"), *theirs]


def _volumes(job: Job) -> list[Fields]:
    pod_template = job.spec.template
    memory = _non_empty(medium="Memory", sizeLimit=pod_template.shm_size)
    ours = {
        "document": pod_document.volume(job.spec),
        "work": {"emptyDir": {}},
        "tmp": {"emptyDir": {}},
        "shm": {"emptyDir": memory},
        **({"models": _cache(pod_template.model_cache)} if pod_template.model_cache else {}),
    }
    mounted = {mount["name"] for mount in _mounts(job)}
    named = [{"name": f"tailorpo-{name}", **source} for name, source in ours.items()]
    return [*(volume for volume in named if volume["name"] in mounted), *_dump_all(pod_template.volumes)]


def _cache(cache: ModelCache) -> Fields:
    if cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}


def _mounts(job: Job) -> list[Fields]:
    """The operator's mounts, then the user's, which replace those of the same path, such as /tmp."""
    pod_template = job.spec.template
    paths = {"work": pod_document.WORK, "tmp": "/tmp", "shm": SHARED_MEMORY}
    paths |= {"models": pod_template.model_cache.mount_path} if pod_template.model_cache else {}
    document = {"name": "tailorpo-document", "mountPath": DOCUMENT_FOLDER, "readOnly": True}
    ours: list[Fields] = [{"name": f"tailorpo-{name}", "mountPath": path} for name, path in paths.items()]
    theirs = _dump_all(pod_template.volume_mounts)
    return [document, *_unless_named(ours, theirs, "mountPath"), *theirs]


def _unless_named(ours: Iterable[Fields], theirs: Iterable[Fields], key: str) -> list[Fields]:
    """The operator's entries that the user does not set: the effect of two entries with one name is undefined."""
    taken = {normpath(entry[key]) for entry in theirs}
    return [entry for entry in ours if normpath(entry[key]) not in taken]


def _non_empty(**fields: Any) -> Fields:
    """The fields that have a value: the API server stores nothing for the others."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _dump(model: SpecModel | None) -> Any:
    return None if model is None else model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _dump_all(models: Iterable[SpecModel]) -> list[Fields]:
    return [_dump(model) for model in models]
