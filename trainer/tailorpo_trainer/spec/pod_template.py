"""Where a run runs on a cluster: the document's `template` and `scheduling`, which `tailorpo run` ignores.

It is part of the trainer, so that `tailorpo validate` checks a whole document on any machine; only the operator uses
it. Fields have the names and meanings of Kubernetes. Small objects are modelled in full; the deep ones (`affinity`,
sources of volumes, security contexts) are passed on unchanged, and the API server checks them with the pod.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tailorpo_trainer.spec.types import (
    MOUNT_PATH,
    VARIABLE,
    VISIBLE,
    DataKey,
    Label,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    SpecModel,
    Text,
)

Image = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=VISIBLE)]
VariableName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=VARIABLE)]
VariableValue = Annotated[str, StringConstraints(max_length=4096)]
Annotation = Annotated[str, StringConstraints(max_length=4096)]
MountPath = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=MOUNT_PATH)]

Open = Annotated[dict[str, Any], Field(max_length=32)]
"""An object of Kubernetes that is passed on unchecked."""


class SecretName(SpecModel):
    """A Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")


class DataSource(SpecModel):
    """A Secret or ConfigMap in the job's namespace, all of its keys."""

    name: ObjectName = Field(description="Its name.")
    optional: bool | None = Field(None, description="Whether it may be missing.")


class DataItem(SpecModel):
    """A key of a Secret or a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret or ConfigMap.")
    key: DataKey = Field(description="Key whose value is taken.")
    optional: bool | None = Field(None, description="Whether it may be missing.")


class FieldOfPod(SpecModel):
    """A field of the pod itself."""

    api_version: Text | None = Field(None, max_length=63, description="Version of the path. Default: `v1`.")
    field_path: Text = Field(description="Path of the field, such as `spec.nodeName`.")


class ValueFrom(SpecModel):
    """Where the value of a variable comes from: exactly one of the fields."""

    secret_key_ref: DataItem | None = Field(None, description="A Secret's key.")
    config_map_key_ref: DataItem | None = Field(None, description="A ConfigMap's key.")
    field_ref: FieldOfPod | None = Field(None, description="A field of the pod.")
    resource_field_ref: Open | None = Field(None, description="A resource of the container, as for any pod.")


class Variable(SpecModel):
    """An environment variable."""

    name: VariableName = Field(description="Name of the variable.")
    value: VariableValue | None = Field(None, description="Its value; never a secret.")
    value_from: ValueFrom | None = Field(None, description="Where its value comes from, instead of `value`.")


class VariablesFrom(SpecModel):
    """Environment variables from all keys of a Secret or a ConfigMap: exactly one of them."""

    prefix: Annotated[str, StringConstraints(max_length=253)] | None = Field(
        None, description="Put before each key to name the variable."
    )
    config_map_ref: DataSource | None = Field(None, description="The ConfigMap.")
    secret_ref: DataSource | None = Field(None, description="The Secret.")


class Volume(SpecModel):
    """A volume of the pod: its name, and exactly one source, which is passed on as it is."""

    name: Label = Field(description="Name that `volumeMounts` refer to.")
    empty_dir: Open | None = Field(None, description="An empty folder that lives as long as the pod.")
    persistent_volume_claim: Open | None = Field(
        None, description="A claim in the job's namespace; with several workers it must allow access from all."
    )
    host_path: Open | None = Field(None, description="A path of the node.")
    nfs: Open | None = Field(None, description="A folder of an NFS server.")
    config_map: Open | None = Field(None, description="Files from a ConfigMap.")
    secret: Open | None = Field(None, description="Files from a Secret.")
    projected: Open | None = Field(None, description="Files from several of these.")
    csi: Open | None = Field(None, description="A volume of a CSI driver.")
    ephemeral: Open | None = Field(None, description="A claim that is created for the pod and deleted with it.")
    downward_api: Open | None = Field(None, alias="downwardAPI", description="Files about the pod itself.")
    image: Open | None = Field(None, description="The content of an image.")


class VolumeMount(SpecModel):
    """Where a volume is mounted in the trainer's container."""

    name: Label = Field(description="Name of one of `volumes`.")
    mount_path: MountPath = Field(description="Absolute path in the container.")
    sub_path: Text | None = Field(None, description="Path within the volume. Default: its root.")
    read_only: bool = Field(False, description="Whether the trainer cannot write to it.")


class Toleration(SpecModel):
    """Lets pods run on nodes with a taint."""

    key: LabelKey | None = Field(None, description="Key of the taint. Default: any.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Default: `Equal`.")
    value: LabelValue | None = Field(None, description="Value of the taint, for `Equal`.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint. Default: any."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Seconds a `NoExecute` taint is tolerated. Default: for ever."
    )


class Affinity(SpecModel):
    """Which nodes and neighbours pods prefer or need, as for any pod."""

    node_affinity: Open | None = Field(None, description="Rules about nodes.")
    pod_affinity: Open | None = Field(None, description="Rules about pods to be near.")
    pod_anti_affinity: Open | None = Field(None, description="Rules about pods to be far from.")


class Resources(SpecModel):
    """What the trainer's container of one worker is given, such as `nvidia.com/gpu: 1`."""

    limits: dict[LabelKey, Quantity] | None = Field(
        None, max_length=32, description="Most that it may use; a container that exceeds its `memory` is killed."
    )
    requests: dict[LabelKey, Quantity] | None = Field(
        None, max_length=32, description="What a node must have free. Default: the limits."
    )
    claims: list[Open] | None = Field(
        None, max_length=16, description="Entries of `resourceClaims` that the container uses."
    )


class ModelCache(SpecModel):
    """Where downloaded models are kept between pods (`HF_HOME`, `XDG_CACHE_HOME`): exactly one of the two sources."""

    claim_name: ObjectName | None = Field(
        None, description="A PersistentVolumeClaim; with several workers it must allow access from all."
    )
    host_path: MountPath | None = Field(
        None,
        description="A folder of each node, which the trainer's user must be able to write to; if it is missing, it "
        "is created and belongs to root.",
    )
    mount_path: MountPath = Field("/var/cache/huggingface", description="Where the trainer sees it.")


class Template(SpecModel):
    """The pods of the workers: the useful part of a pod template, of one container."""

    image: Image | None = Field(None, description="Image with the trainer. Default: the operator's own setting.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="When the image is pulled. Default: as for any pod."
    )
    image_pull_secrets: list[SecretName] = Field([], max_length=16, description="Secrets of the registries.")
    labels: dict[LabelKey, LabelValue] = Field(
        {}, max_length=64, description="Further labels of the pods and of their Job."
    )
    annotations: dict[LabelKey, Annotation] = Field(
        {}, max_length=64, description="Further annotations of the pods and of their Job."
    )
    resources: Resources | None = Field(None, description="What one worker's container is given.")
    resource_claims: list[Open] | None = Field(
        None, max_length=16, description="Dynamically allocated devices, as for any pod."
    )
    env: list[Variable] = Field([], max_length=128, description="Environment variables, such as `NCCL_DEBUG`.")
    env_from: list[VariablesFrom] = Field([], max_length=32, description="Variables from Secrets and ConfigMaps.")
    volumes: list[Volume] = Field([], max_length=64, description="Volumes of the pod.")
    volume_mounts: list[VolumeMount] = Field([], max_length=64, description="Where the trainer sees them.")
    shm_size: Quantity | None = Field(
        None,
        description="Size of the memory volume at `/dev/shm`, part of the memory limit. Default: no limit of its own.",
    )
    model_cache: ModelCache | None = Field(
        None, description="Where downloaded models are kept between pods. Default: each pod downloads its own."
    )
    hub_token: DataItem | None = Field(
        None, description="Secret's key that holds a Hugging Face token (`HF_TOKEN`), for models that need one."
    )
    node_selector: dict[LabelKey, LabelValue] = Field({}, max_length=32, description="Labels that a node must have.")
    tolerations: list[Toleration] = Field([], max_length=32, description="Taints that pods tolerate.")
    affinity: Affinity | None = Field(None, description="Which nodes and neighbours pods prefer or need.")
    topology_spread_constraints: list[Open] | None = Field(
        None, max_length=8, description="How workers spread over zones or nodes, as for any pod."
    )
    service_account_name: ObjectName | None = Field(
        None, description="Service account of the pods, for what its cloud grants it; its token is not mounted."
    )
    runtime_class_name: ObjectName | None = Field(None, description="Container runtime, such as `nvidia`.")
    host_network: bool = Field(False, description="Use the node's network, as some fast interconnects need.")
    security_context: Open | None = Field(
        None, description="Security context of the container. Default: no privileges, and no way to gain them."
    )
    pod_security_context: Open | None = Field(
        None, description="Security context of the pod, such as `fsGroup`. Default: not as root."
    )


class Scheduling(SpecModel):
    """Queue, priority and gang of the pods."""

    queue_name: Label | None = Field(
        None, description="Kueue's LocalQueue that the job waits in. Default: none, pods are created at once."
    )
    priority_class_name: ObjectName | None = Field(
        None, description="PriorityClass of the pods: decides which pods wait, and which are preempted."
    )
    gang: Literal["Auto", "Required", "None"] = Field(
        "Auto",
        description="Whether a scheduler places all workers or none: `Auto` asks for it where the cluster can, "
        "`Required` fails where it cannot, `None` never asks.",
    )
    scheduler_name: ObjectName | None = Field(None, description="Scheduler of the pods. Default: the cluster's own.")
