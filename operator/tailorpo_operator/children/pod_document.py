"""What the trainer of a pod is given: the job's document, and the ConfigMaps that its prompts come from.

All lies in one folder. The document is an annotation of the pod and no variable, since a kubelet replaces `$(NAME)`
in those.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from tailorpo_operator.api.naming import DOCUMENT
from tailorpo_operator.api.types import Job
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import CLUSTER_FIELDS, TRAINER_RUN_POLICY, ConfigMapKey, Spec

MAX_BYTES = 65_536
"""Of the document. All annotations of a pod together may have four times as many."""

FILE = "job.yaml"
EVALUATION = "evaluation"
WORK = "/var/lib/tailorpo"
"""The working folder, from which relative paths of a document start on a cluster."""

PATHS = (("prompts", "file"), ("evaluation", "prompts", "file"), ("checkpoint", "storage"), ("checkpoint", "ca_file"))
"""Fields of `Spec` that a laptop takes as paths beside the document."""


class TooLarge(ValueError):  # noqa: N818 (reads as what is wrong)
    """A document that no pod template has room for."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"the document with its defaults has {size:,} bytes, and pods take at most {MAX_BYTES:,}: put its prompts "
            "into a ConfigMap (spec.prompts.configMapKeyRef) or a file (spec.prompts.file)"
        )


def text(job: Job) -> str:
    """The trainer's document in ASCII. Raises `TooLarge`."""
    # JSON lets DEL stand for itself, and YAML does not.
    made = json.dumps(document(job), separators=(",", ":")).replace("\x7f", "\\u007f")
    if len(made) > MAX_BYTES:
        raise TooLarge(len(made))
    return made


def document(job: Job) -> dict[str, Any]:
    """The document with all defaults, without what the operator alone reads, and with paths as they are in a pod."""
    spec = rules.resolve(job.spec)
    left_out: dict[str, Any] = {name: True for name in CLUSTER_FIELDS if name != "run_policy"}
    left_out["run_policy"] = {name for name in type(spec.run_policy).model_fields if name not in TRAINER_RUN_POLICY}
    left_out["checkpoint"] = {"secret_name"}
    names = {key: job.metadata[key] for key in ("name", "namespace") if job.metadata.get(key)}
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "metadata": names,
        "spec": in_pod(spec).model_dump(mode="json", by_alias=True, exclude_none=True, exclude=left_out),
    }


def in_pod(spec: Spec) -> Spec:
    """The same with every ConfigMap as a file and every relative path below the working folder."""
    for *parents, name in PATHS:
        value = _at(spec, [*parents, name])
        if value is not None and is_relative(value):
            spec = _with(spec, parents, {name: str(PurePosixPath(WORK, value.removeprefix("file://")))})
    for parents, _, path in config_maps(spec):
        spec = _with(spec, parents, {"config_map_key_ref": None, "file": path})
    return spec


def is_relative(path: str) -> bool:
    """Whether a field's path starts from where the document is."""
    return not path.removeprefix("file://").startswith(("/", "~", "s3://"))


def config_maps(spec: Spec) -> Iterator[tuple[list[str], ConfigMapKey, str]]:
    """Prompts from ConfigMaps: where `spec` has them, which key, and its path beside the document.

    A key is a file of its own name, so a laptop's `file: prompts.txt` is the same experiment.
    """
    if ref := spec.prompts.config_map_key_ref:
        yield ["prompts"], ref, f"prompts/{ref.key}" if ref.key in (FILE, EVALUATION, "prompts") else ref.key
    if spec.evaluation.prompts and (ref := spec.evaluation.prompts.config_map_key_ref):
        yield ["evaluation", "prompts"], ref, f"{EVALUATION}/{ref.key}"


def volume(spec: Spec) -> dict[str, Any]:
    """The source of the volume with the document and what lies beside it."""
    annotation = {"path": FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{DOCUMENT}']"}}
    sources: list[dict[str, Any]] = [{"downwardAPI": {"items": [annotation]}}]
    for _, ref, path in config_maps(spec):
        sources.append({"configMap": {"name": ref.name, "items": [{"key": ref.key, "path": path}]}})
    return {"projected": {"sources": sources}}


def _at(part: Any, path: list[str]) -> Any:
    for name in path:
        part = getattr(part, name, None)
    return part


def _with(part: Any, path: list[str], values: dict[str, Any]) -> Any:
    if path:
        values = {path[0]: _with(getattr(part, path[0]), path[1:], values)}
    return part.model_copy(update=values)
