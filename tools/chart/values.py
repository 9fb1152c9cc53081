"""The chart's values: the one source of `values.yaml`, `values.schema.json` and the README's table."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Labels = dict[str, str]
Object = dict[str, Any]
Objects = list[Object]
Name = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
Duration = Annotated[str, Field(pattern=r"^(([0-9]+(ms|[smhd]))+)?$")]
AtLeast0 = Annotated[int, Field(ge=0)]

NOT_WRITTEN = ("enabled",)
"""Values that are declared, so that a parent chart may set them, and stand in no `values.yaml`."""


class Values(BaseModel):
    """A level of the values: an unknown name is an error, and every name has a default."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


def default(model: type[Values]) -> Any:
    return Field(default_factory=model)


class Global(BaseModel):
    """Shared with the other charts of a parent chart, which may put anything else here."""

    model_config = ConfigDict(extra="allow", alias_generator=to_camel)

    image_registry: str = Field(
        "",
        description="Registry of both images, before any other setting, as `registry.example.com/mirror`.",
    )
    image_pull_secrets: Objects = Field(
        [], description="Secrets for pulling the operator's image, as `[{name: registry}]`, besides `imagePullSecrets`."
    )


class Image(Values):
    registry: str = Field("", description="Registry of the image; empty: that of the container runtime.")
    repository: str = Field("tailorpo-operator", description="Name of the image in its registry.", min_length=1)
    tag: str = Field("", description="Tag; empty: the chart's `appVersion`.")
    digest: Digest = Field("", description="Digest, as `sha256:…`; the tag is then not used.")


class OperatorImage(Image):
    pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = Field(
        "", description="When the image is pulled; empty: Kubernetes' default for the tag."
    )


class TrainerImage(Image):
    registry: str = Field("", description="Registry of the trainer's image.")
    repository: str = Field("tailorpo-trainer", description="Name of the trainer's image.", min_length=1)
    tag: str = Field("", description="Tag of the trainer's image; empty: the chart's `appVersion`.")
    digest: Digest = Field("", description="Digest of the trainer's image; the tag is then not used.")


class Trainer(Values):
    image: TrainerImage = Field(
        default_factory=TrainerImage, description="The image of jobs whose `spec.template.image` names none."
    )


class Crds(Values):
    enabled: bool = Field(
        True,
        description="Installs and upgrades the definition `tailorpojobs.tailorpo.dev`. One release of a cluster does.",
    )
    keep: bool = Field(
        True, description="Keeps the definition when the release is uninstalled: with it all jobs would be deleted."
    )


class ServiceAccount(Values):
    create: bool = Field(True, description="Creates the operator's service account.")
    name: str = Field("", description="Its name; empty: that of the Deployment, or `default` if none is created.")
    annotations: Labels = Field({}, description="Its annotations.")


class Rbac(Values):
    create: bool = Field(
        True,
        description="Creates the operator's rights: a ClusterRole, or a Role in each of `watchNamespaces`, "
        "and a Role for the Lease.",
    )
    aggregate: bool = Field(
        True,
        description="Creates ClusterRoles that add TailorPOJobs to Kubernetes' own roles view, edit and admin.",
    )


class PodDisruptionBudget(Values):
    enabled: bool = Field(
        False,
        description="Creates a PodDisruptionBudget with `maxUnavailable: 1`: drains move one replica at a time.",
    )


class NetworkPolicy(Values):
    enabled: bool = Field(
        False,
        description="Creates a NetworkPolicy that lets only the operator's HTTP port in (probes and metrics).",
    )
    from_: Objects = Field(
        [], alias="from", description="Peers that may ask for metrics, as in `ingress.from`; empty: all."
    )
    egress: Objects = Field(
        [],
        description="Rules as in `egress`; empty: everything goes out. If given, they have to allow DNS, the API "
        "server and port 9400 of the trainer's pods.",
    )


class Monitor(Values):
    enabled: bool = Field(False, description="")
    interval: Duration = Field("15s", description="Time between two scrapes; empty: Prometheus' own.")
    labels: Labels = Field(
        {}, description="Labels by which Prometheus selects it, as `{release: kube-prometheus-stack}`."
    )
    relabelings: Objects = Field([], description="Rules for targets before a scrape.")
    metric_relabelings: Objects = Field([], description="Rules for samples after a scrape.")


class PodMonitor(Monitor):
    enabled: bool = Field(
        False, description="Creates PodMonitors of the operator and of all trainer pods. Needs the Prometheus Operator."
    )


class ServiceMonitor(Monitor):
    enabled: bool = Field(
        False,
        description="Creates a Service and a ServiceMonitor of the operator, where Services are preferred. Trainer "
        "pods have no Service: they need `metrics.podMonitor`, which then leaves the operator out.",
    )


class AlertOverride(Values):
    """Another time or threshold for one alert."""

    for_: str | None = Field(None, alias="for", description="How long its condition has to hold, such as `10m`.")
    severity: Literal["critical", "warning", "info"] | None = Field(None, description="Its label `severity`.")
    threshold: float | None = Field(None, description="The number that its expression ends with.")


class PrometheusRule(Values):
    enabled: bool = Field(False, description="Creates a PrometheusRule with recording rules and alerts.")
    labels: Labels = Field({}, description="Labels by which Prometheus selects it.")
    disabled: list[str] = Field([], description="Names of alerts to leave out.")
    overrides: dict[str, AlertOverride] = Field(
        {}, description="By the name of an alert, what to change: `{TailorPOStalled: {for: 2h, severity: info}}`."
    )
    runbook_url: str = Field(
        "https://tailorpo.dev/runbooks", description="Where `docs/runbooks.md` is published; links of alerts begin so."
    )


class Dashboards(Values):
    enabled: bool = Field(False, description="Creates a ConfigMap for each Grafana dashboard.")
    labels: Labels = Field({"grafana_dashboard": "1"}, description="Labels by which Grafana's sidecar finds them.")
    annotations: Labels = Field(
        {}, description="Annotations, such as that of the sidecar's folder: `{grafana_folder: TailorPO}`."
    )


class Metrics(Values):
    pod_monitor: PodMonitor = default(PodMonitor)
    service_monitor: ServiceMonitor = default(ServiceMonitor)
    prometheus_rule: PrometheusRule = default(PrometheusRule)
    dashboards: Dashboards = default(Dashboards)


class HelmTest(Values):
    enabled: bool = Field(
        False,
        description="Adds a test for `helm test`: it creates a tiny TailorPOJob in the release's namespace with the "
        "trainer's image, waits until it has succeeded, and deletes it.",
    )
    timeout_seconds: int = Field(600, ge=1, description="Seconds until the test fails.")


class Root(Values):
    """All values."""

    global_: Global = Field(default_factory=Global, alias="global")
    enabled: bool = Field(True, description="For a parent chart: the condition of the dependency. Not read here.")
    fullname_override: Annotated[str, Field(max_length=50, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = Field(
        "",
        description="Begins the names of the objects in the release's namespace; empty: the release's name, with "
        "`tailorpo` in it.",
    )
    common_labels: Labels = Field({}, description="Labels of all objects.")
    watch_namespaces: Annotated[list[Name], Field(json_schema_extra={"uniqueItems": True})] = Field(
        [],
        description="Namespaces whose jobs are reconciled; they have to exist. Empty: all. If given, the operator has "
        "a Role in each instead of a ClusterRole.",
    )
    image: OperatorImage = Field(default_factory=OperatorImage, description="The operator's image.")
    trainer: Trainer = default(Trainer)
    image_pull_secrets: Objects = Field(
        [], description="Secrets for pulling the operator's image, as `[{name: registry}]`. A job names its own."
    )
    crds: Crds = default(Crds)
    service_account: ServiceAccount = default(ServiceAccount)
    rbac: Rbac = default(Rbac)
    replica_count: AtLeast0 = Field(
        1, description="Replicas of the operator. One acts, elected by a Lease; the others stand by."
    )
    extra_args: list[str] = Field(
        [], description="More options of `tailorpo operator`, as `[--requests-per-second=500]`."
    )
    extra_env: Objects = Field([], description="More environment variables, as in a container.")
    volumes: Objects = Field([], description="More volumes of the pod.")
    volume_mounts: Objects = Field([], description="More mounts of the container.")
    resources: Object = Field(
        {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        description="Resources of the container. A thousand jobs need about 100 MB, five thousand about 180 MB.",
    )
    pod_labels: Labels = Field({}, description="More labels of the pods.")
    pod_annotations: Labels = Field({}, description="More annotations of the pods.")
    pod_security_context: Object = Field(
        {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        description="Security context of the pods. It names no user: the image does, and OpenShift chooses its own.",
    )
    security_context: Object = Field(
        {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        description="Security context of the container. With both, the pods pass Pod Security's `restricted`.",
    )
    startup_probe: Object = Field(
        {"periodSeconds": 2, "failureThreshold": 90},
        description="Times of the startup probe: the operator serves after seconds, on a busy node after a minute.",
    )
    readiness_probe: Object = Field({}, description="Times of the readiness probe.")
    liveness_probe: Object = Field({"timeoutSeconds": 5}, description="Times of the liveness probe.")
    node_selector: Labels = Field({}, description="Labels that a node needs to run the operator.")
    tolerations: Objects = Field([], description="Taints that the operator tolerates.")
    affinity: Object = Field({}, description="Affinity of the operator's pods.")
    topology_spread_constraints: Objects = Field(
        [],
        description="How replicas are spread. A constraint without `labelSelector` gets that of the operator's pods.",
    )
    priority_class_name: str = Field("", description="Priority class of the operator's pods.")
    pod_disruption_budget: PodDisruptionBudget = default(PodDisruptionBudget)
    network_policy: NetworkPolicy = default(NetworkPolicy)
    metrics: Metrics = default(Metrics)
    helm_test: HelmTest = default(HelmTest)
    extra_objects: list[str | Object] = Field(
        [],
        description="More objects of the release, each as an object or as a text; both may use templates, as "
        "`{{ .Release.Namespace }}`.",
    )
