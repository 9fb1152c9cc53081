"""The pods of an attempt: one container with the trainer, hardened, and all that `spec.template` asks for."""

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
"""Of the trainer, unless a document says another: nobody's on any node."""

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


def template(job: Job, attempt: int, image: str) -> Fields:
    """The pod template of an attempt. Raises `TooLarge`."""
    asked, name = job.spec.template, job.metadata["name"]
    return {
        "metadata": {
            "labels": {**asked.labels, **naming.of_attempt(name, attempt)},
            "annotations": {
                "kubectl.kubernetes.io/default-container": naming.CONTAINER,
                **asked.annotations,
                naming.DOCUMENT: pod_document.text(job),
            },
        },
        "spec": _given(
            restartPolicy="Never",
            terminationGracePeriodSeconds=job.spec.run_policy.termination_grace_period_seconds,
            subdomain=naming.RENDEZVOUS if job.spec.workers > 1 else None,
            serviceAccountName=asked.service_account_name,
            automountServiceAccountToken=False,
            enableServiceLinks=False,
            hostNetwork=asked.host_network or None,
            dnsPolicy="ClusterFirstWithHostNet" if asked.host_network else None,
            runtimeClassName=asked.runtime_class_name,
            schedulerName=job.spec.scheduling.scheduler_name,
            priorityClassName=job.spec.scheduling.priority_class_name,
            nodeSelector=asked.node_selector,
            tolerations=_trees(asked.tolerations),
            affinity=_tree(asked.affinity),
            topologySpreadConstraints=asked.topology_spread_constraints,
            resourceClaims=asked.resource_claims,
            imagePullSecrets=_trees(asked.image_pull_secrets),
            securityContext=POD_SECURITY if asked.pod_security_context is None else asked.pod_security_context,
            volumes=_volumes(job),
            containers=[_container(job, attempt, image)],
        ),
    }


def _container(job: Job, attempt: int, image: str) -> Fields:
    asked, secret = job.spec.template, job.spec.checkpoint.secret_name
    return _given(
        name=naming.CONTAINER,
        image=asked.image or image,
        imagePullPolicy=asked.image_pull_policy,
        command=["tailorpo"],
        args=_arguments(job, attempt),
        workingDir=pod_document.WORK,
        env=_variables(job, attempt),
        envFrom=[*([{"secretRef": {"name": secret}}] if secret else []), *_trees(asked.env_from)],
        ports=[{"name": port, "containerPort": number} for port, number in naming.ports(job.spec.workers).items()],
        resources=_tree(asked.resources),
        volumeMounts=_mounts(job),
        securityContext=CONTAINER_SECURITY if asked.security_context is None else asked.security_context,
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
    """Ours, then the user's; of one name the user's alone, where a document may have it."""
    asked = job.spec.template
    values = {
        "TAILORPO_ATTEMPT": str(attempt),
        "TAILORPO_METRICS_HOST": "0.0.0.0",
        "TAILORPO_METRICS_PORT": str(naming.METRICS_PORT),
        "TAILORPO_METRICS_STALL_SECONDS": str(job.spec.run_policy.stall_timeout_seconds),
        "HOME": pod_document.WORK,
    }
    if asked.model_cache:  # the latter is for models from S3
        values |= dict.fromkeys(("HF_HOME", "XDG_CACHE_HOME"), asked.model_cache.mount_path)
    ours: list[Fields] = [{"name": name, "value": value} for name, value in values.items()]
    if asked.hub_token:
        ours.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": _tree(asked.hub_token)}})
    theirs = _trees(asked.env)
    return [*_unless_named(ours, theirs, "name"), *theirs]


def _volumes(job: Job) -> list[Fields]:
    asked = job.spec.template
    memory = _given(medium="Memory", sizeLimit=asked.shm_size)
    ours = {
        "document": pod_document.volume(job.spec),
        "work": {"emptyDir": {}},
        "tmp": {"emptyDir": {}},
        "shm": {"emptyDir": memory},
        **({"models": _cache(asked.model_cache)} if asked.model_cache else {}),
    }
    mounted = {mount["name"] for mount in _mounts(job)}
    named = [{"name": f"tailorpo-{name}", **source} for name, source in ours.items()]
    return [*(volume for volume in named if volume["name"] in mounted), *_trees(asked.volumes)]


def _cache(cache: ModelCache) -> Fields:
    if cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}


def _mounts(job: Job) -> list[Fields]:
    """Ours, then the user's; where a user mounts something at /tmp, say, ours gives way."""
    asked = job.spec.template
    paths = {"work": pod_document.WORK, "tmp": "/tmp", "shm": SHARED_MEMORY}
    paths |= {"models": asked.model_cache.mount_path} if asked.model_cache else {}
    document = {"name": "tailorpo-document", "mountPath": DOCUMENT_FOLDER, "readOnly": True}
    ours: list[Fields] = [{"name": f"tailorpo-{name}", "mountPath": path} for name, path in paths.items()]
    theirs = _trees(asked.volume_mounts)
    return [document, *_unless_named(ours, theirs, "mountPath"), *theirs]


def _unless_named(ours: Iterable[Fields], theirs: Iterable[Fields], key: str) -> list[Fields]:
    """Those of ours that the user has none of: of two entries with one name, which counts is a guess."""
    taken = {normpath(entry[key]) for entry in theirs}
    return [entry for entry in ours if normpath(entry[key]) not in taken]


def _given(**fields: Any) -> Fields:
    """Fields that say something: the API server stores nothing for the others."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def _tree(part: SpecModel | None) -> Any:
    return None if part is None else part.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _trees(parts: Iterable[SpecModel]) -> list[Fields]:
    return [_tree(part) for part in parts]
