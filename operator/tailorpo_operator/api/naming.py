"""Names and labels of a job's children, by which the operator, users and Prometheus find them."""

from typing import NamedTuple

JOB = "tailorpo.dev/job"
ATTEMPT = "tailorpo.dev/attempt"
DOCUMENT = "tailorpo.dev/document"
"""Annotation of the pods that holds the trainer's document, as JSON."""

GENERATION = "tailorpo.dev/generation"
TEMPLATE_HASH = "tailorpo.dev/template-hash"
"""Annotations of the Job of an attempt: the generation it was made for, and a hash of what its pods are made of."""

COMMON = {"app.kubernetes.io/name": "tailorpo-trainer", "app.kubernetes.io/managed-by": "tailorpo-operator"}
QUEUE = "kueue.x-k8s.io/queue-name"
COPIED_PREFIXES = ("kueue.x-k8s.io/",)
"""Of labels and annotations of a job that reach its Jobs and pods, unless the operator's settings name others."""

CONTAINER = "trainer"
METRICS = "metrics"
METRICS_PORT = 9400
MASTER = "master"
MASTER_PORT = 29400
RENDEZVOUS = "tailorpo-rendezvous"
"""The Service by which workers find the first worker, in each namespace with jobs of several workers."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""Label and annotation that Kubernetes sets on a pod: the number of the worker."""

IMAGE = "tailorpo-trainer:0.1.0"
"""The trainer's image if neither the job nor the operator's settings name one."""


class Key(NamedTuple):
    """A namespaced name; mostly that of a job."""

    namespace: str
    name: str


def attempt_name(name: str, attempt: int) -> str:
    """The name of the Job of an attempt; its pods are `NAME-NNNN-INDEX-…`, and their host names `NAME-NNNN-INDEX`."""
    return f"{name}-{attempt:04d}"


def of_job(name: str) -> dict[str, str]:
    """Labels of everything that belongs to a job."""
    return {**COMMON, JOB: name}


def of_attempt(name: str, attempt: int) -> dict[str, str]:
    """Labels of everything that belongs to one of its attempts."""
    return {**of_job(name), ATTEMPT: str(attempt)}


def ports(workers: int) -> dict[str, int]:
    """The ports of a pod by name. With `hostNetwork` the scheduler places pods with equal ports on different nodes."""
    return {METRICS: METRICS_PORT, **({MASTER: MASTER_PORT} if workers > 1 else {})}
