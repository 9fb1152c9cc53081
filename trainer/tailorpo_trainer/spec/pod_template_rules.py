"""Rules of `spec.template` that span several fields; as with `rules.py`, the API server checks the same ones."""

from collections.abc import Iterator

from tailorpo_trainer.spec.job import Spec
from tailorpo_trainer.spec.pod_template import ModelCache, ValueFrom, VariablesFrom, Volume
from tailorpo_trainer.spec.types import SpecModel
from tailorpo_trainer.spec.violations import Path, Violation, alias, and_list, or_list

TEMPLATE = ("spec", "template")

UNIQUE = {"imagePullSecrets": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""Lists of the template, and the key that is unique in each; the API server merges entries by it."""

RESERVED_VARIABLES = (
    "JOB_COMPLETION_INDEX",
    "TAILORPO_ATTEMPT",
    "TAILORPO_DOCUMENT",
    "TAILORPO_JOB",
    "TAILORPO_LAUNCHER",
    "TAILORPO_METRICS_HOST",
    "TAILORPO_METRICS_PORT",
    "TAILORPO_METRICS_STALL_SECONDS",
    "TAILORPO_REPORTS",
    "TAILORPO_TERMINATION_LOG",
)
RESERVED_LABELS = ("tailorpo.dev/", "batch.kubernetes.io/")
RESERVED_VOLUMES = "tailorpo-"
SHARED_MEMORY = "/dev/shm"
DOCUMENT_FOLDER = "/etc/tailorpo"

ONE_OF: dict[type[SpecModel], tuple[str, ...]] = {
    Volume: tuple(field for field in Volume.model_fields if field != "name"),
    ValueFrom: tuple(ValueFrom.model_fields),
    VariablesFrom: ("config_map_ref", "secret_ref"),
    ModelCache: ("claim_name", "host_path"),
}
"""Objects that need exactly one of these fields."""


def unique_entries(spec: Spec) -> Iterator[Violation]:
    """With two entries of one name, it would not be clear which one counts."""
    lists = spec.template.model_dump(by_alias=True, include={"image_pull_secrets", "env", "volumes", "volume_mounts"})
    for name, key in UNIQUE.items():
        first_numbers: dict[str, int] = {}
        for number, entry in enumerate(lists[name]):
            path = (*TEMPLATE, name)
            first = first_numbers.setdefault(entry[key], number)
            if first != number:
                yield Violation(
                    (*path, number, key),
                    ((*path, first, key),),
                    f"{entry[key]!r} stands twice: first in spec.template.{name}[{first}]",
                )


def one_source(spec: Spec) -> Iterator[Violation]:
    """With several sources all but one would be ignored; with none there is nothing to use."""
    template = spec.template
    entries: list[tuple[Path, SpecModel]] = []
    entries += [(("volumes", n), volume) for n, volume in enumerate(template.volumes)]
    entries += [(("env", n, "valueFrom"), entry.value_from) for n, entry in enumerate(template.env) if entry.value_from]
    entries += [(("envFrom", n), entry) for n, entry in enumerate(template.env_from)]
    entries += [(("modelCache",), template.model_cache)] if template.model_cache else []
    for path, entry in entries:
        fields = ONE_OF[type(entry)]
        given = [alias(entry, field) for field in fields if getattr(entry, field) is not None]
        if len(given) != 1:
            names = [alias(entry, field) for field in fields]
            yield Violation(
                (*TEMPLATE, *path), (), f"needs exactly one of {or_list(names)}, has {and_list(given) or 'none'}"
            )


def one_value(spec: Spec) -> Iterator[Violation]:
    """A variable has either a value or a source."""
    for number, entry in enumerate(spec.template.env):
        if entry.value is not None and entry.value_from is not None:
            path = (*TEMPLATE, "env", number)
            yield Violation((*path, "valueFrom"), ((*path, "value"),), "stands beside `value`: leave one of them out")


def mounted_volumes(spec: Spec) -> Iterator[Violation]:
    """Kubernetes refuses a pod that mounts an unknown volume."""
    names = {volume.name for volume in spec.template.volumes}
    for number, mount in enumerate(spec.template.volume_mounts):
        if mount.name not in names:
            yield Violation(
                (*TEMPLATE, "volumeMounts", number, "name"),
                ((*TEMPLATE, "volumes"),),
                f"{mount.name!r} is the name of none of spec.template.volumes",
            )


def reserved(spec: Spec) -> Iterator[Violation]:
    """The operator sets these itself, so that two values would conflict."""
    template = spec.template
    for number, variable in enumerate(template.env):
        if variable.name in RESERVED_VARIABLES:
            yield Violation(
                (*TEMPLATE, "env", number, "name"), (), f"{variable.name!r} is set by TailorPO: leave it out"
            )
    for name in ("labels", "annotations"):
        for key in getattr(template, name):
            if key.startswith(RESERVED_LABELS):
                yield Violation((*TEMPLATE, name, key), (), "is set by TailorPO or Kubernetes: leave it out")
    for number, volume in enumerate(template.volumes):
        if volume.name.startswith(RESERVED_VOLUMES):
            yield Violation(
                (*TEMPLATE, "volumes", number, "name"),
                (),
                f"{volume.name!r} is a name of TailorPO's own: use one without {RESERVED_VOLUMES!r}",
            )
    for number, mount in enumerate(template.volume_mounts):
        path = (*TEMPLATE, "volumeMounts", number, "mountPath")
        if mount.mount_path in (SHARED_MEMORY, SHARED_MEMORY + "/"):
            message = f"{SHARED_MEMORY} is mounted by TailorPO: set its size as spec.template.shmSize"
            yield Violation(path, (), message)
        if f"{mount.mount_path}/".startswith(f"{DOCUMENT_FOLDER}/"):
            yield Violation(path, (), f"{DOCUMENT_FOLDER} holds the document, and nothing else: choose another folder")


RULES = (unique_entries, one_source, one_value, mounted_volumes, reserved)
