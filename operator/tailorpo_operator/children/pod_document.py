"""The files that the trainer of a pod reads: the job's document, and the ConfigMaps with its prompts.

All are in one folder. The document is an annotation of the pod instead of an environment variable, because a kubelet
replaces `$(NAME)` in variables.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from tailorpo_operator.api.naming import DOCUMENT
from tailorpo_operator.api.types import Job
from tailorpo_trainer.spec import rules
from tailorpo_trainer.spec.job import CLUSTER_FIELDS, TRAINER_RUN_POLICY, ConfigMapKey, RunPolicy, Spec

MAX_BYTES = 65_536
"""Of the document. The annotations of a pod may have four times as many bytes in total."""

FILE = "job.yaml"
EVALUATION = "evaluation"
WORK = "/var/lib/tailorpo"
"""The working folder: relative paths of a document start here on a cluster."""

PATHS = (("prompts", "file"), ("evaluation", "prompts", "file"), ("checkpoint", "storage"), ("checkpoint", "ca_file"))
"""Fields of `Spec` whose relative paths start at the document's folder on a laptop."""


class TooLarge(ValueError):  # noqa: N818 (its name is a status reason)
    """The document is too large for a pod template."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"the document has {size:,} bytes, and pods take at most {MAX_BYTES:,}: put its prompts "
            "into a ConfigMap (spec.prompts.configMapKeyRef) or a file (spec.prompts.file)"
        )


def text(job: Job) -> str:
    """The trainer's document in ASCII. Raises `TooLarge`."""
    # JSON allows DEL in text, and YAML does not.
    encoded = json.dumps(document(job), separators=(",", ":")).replace("\x7f", "\\u007f")
    if len(encoded) > MAX_BYTES:
        raise TooLarge(len(encoded))
    return encoded


def document(job: Job) -> dict[str, Any]:
    """The document with the paths of a pod, without fields that only the operator reads, and without defaults.

    A trainer of an older version has fewer fields: it would refuse a default that it does not know.
    """
    ours = {name: True for name in CLUSTER_FIELDS if name != "run_policy"}
    spec = in_pod(rules.unresolve(job.spec))
    kept = {name: getattr(spec.run_policy, name) for name in TRAINER_RUN_POLICY}
    spec = _replace(spec, [], {"run_policy": RunPolicy(**kept)})
    spec = _replace(spec, ["checkpoint"], {"secret_name": None})
    names = {key: job.metadata[key] for key in ("name", "namespace") if job.metadata.get(key)}
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "metadata": names,
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=ours),
    }


def in_pod(spec: Spec) -> Spec:
    """The spec with every ConfigMap as a file and every relative path below the working folder."""
    for *parents, name in PATHS:
        value = _get(spec, [*parents, name])
        if value is not None and is_relative(value):
            spec = _replace(spec, parents, {name: str(PurePosixPath(WORK, value.removeprefix("file://")))})
    for parents, _, path in config_maps(spec):
        spec = _replace(spec, parents, {"config_map_key_ref": None, "file": path})
    return spec


def is_relative(path: str) -> bool:
    """Whether a path starts at the document's folder."""
    return not path.removeprefix("file://").startswith(("/", "~", "s3://"))


def config_maps(spec: Spec) -> Iterator[tuple[list[str], ConfigMapKey, str]]:
    """Prompts from ConfigMaps: the field of `spec`, the key, and its path in the document's folder.

    A key becomes a file of its name, so that `file: prompts.txt` on a laptop is the same experiment.
    """
    if ref := spec.prompts.config_map_key_ref:
        yield ["prompts"], ref, f"prompts/{ref.key}" if ref.key in (FILE, EVALUATION, "prompts") else ref.key
    if spec.evaluation.prompts and (ref := spec.evaluation.prompts.config_map_key_ref):
        yield ["evaluation", "prompts"], ref, f"{EVALUATION}/{ref.key}"


def volume(spec: Spec) -> dict[str, Any]:
    """The source of the volume with the document and its prompts."""
    annotation = {"path": FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{DOCUMENT}']"}}
    sources: list[dict[str, Any]] = [{"downwardAPI": {"items": [annotation]}}]
    for _, ref, path in config_maps(spec):
        sources.append({"configMap": {"name": ref.name, "items": [{"key": ref.key, "path": path}]}})
    return {"projected": {"sources": sources}}


def _get(value: Any, path: list[str]) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _replace(model: Any, path: list[str], values: dict[str, Any]) -> Any:
    if path:
        values = {path[0]: _replace(getattr(model, path[0]), path[1:], values)}
    return model.model_copy(update=values)
