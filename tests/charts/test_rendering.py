"""What the chart renders to, for sets of values, versions of Kubernetes, with and without the Prometheus Operator."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from kubernetes_validate import validate

from tailorpo_operator.api import crd, naming
from tests.charts.releases import CHART, MONITORING, NAMESPACE, Object, identity, rendered
from tests.cluster.helm import Helm, HelmError
from tools.chart.manifests import files
from tools.chart.pages import pages

FULL = CHART / "ci" / "full-values.yaml"
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
MONITORS = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
CLUSTERWIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}

CASES: dict[str, Any] = {
    "default": {},
    "full": FULL,
    "high availability": {"replicaCount": 3, "podDisruptionBudget": {"enabled": True}},
    "no rights": {"rbac": {"create": False, "aggregate": False}, "serviceAccount": {"create": False}},
    "one namespace": {"watchNamespaces": [NAMESPACE]},
    "no definition": {"crds": {"enabled": False}},
    "network policy": {"networkPolicy": {"enabled": True}},
    "dashboards": {"metrics": {"dashboards": {"enabled": True}}, "helmTest": {"enabled": True}},
    "keys removed": {"podSecurityContext": None, "securityContext": None, "resources": None, "commonLabels": None},
}
NEED_MONITORING = {"full"}


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    [found] = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def container(objects: list[Object]) -> Object:
    [found] = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_helm_lint_finds_nothing(helm: Helm) -> None:
    for values in ((), (f"--values={FULL}",)):
        said = helm("lint", "--strict", str(CHART), *values)
        assert "WARNING" not in said
        assert "ERROR" not in said


def test_what_is_generated_is_current(helm: Helm) -> None:
    """`make generate` writes it."""
    stale = [str(path) for path, text in (pages() | files()).items() if not path.exists() or path.read_text() != text]
    assert stale == []


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_valid(helm: Helm, case: str, kubernetes: str) -> None:
    monitoring = [MONITORING] if case in NEED_MONITORING or kubernetes > "1.34" else []
    without = ["--set=crds.enabled=false"] if case != "default" else []  # it is large, and the same in all cases
    objects = rendered(helm, CHART, CASES[case], f"--kube-version={kubernetes}.1-eks-1a2b3c4", *monitoring, *without)
    for each in objects:
        if each["kind"] not in MONITORS:
            validate(each, kubernetes, strict=True)
    assert len({identity(each) for each in objects}) == len(objects)
    for each in objects:
        assert each["kind"] != "Namespace"
        assert ("namespace" in each["metadata"]) == (each["kind"] not in CLUSTERWIDE), identity(each)
        assert nothing_empty(each), identity(each)


def nothing_empty(value: Any) -> bool:
    """No empty list, no null, which the API server would drop and Argo CD would miss; and no empty object but one."""
    if isinstance(value, dict):
        return all(key == "emptyDir" or nothing_empty(each) for key, each in value.items() if key not in NOT_READ)
    if isinstance(value, list):
        return bool(value) and all(map(nothing_empty, value))
    return value not in (None, {})


NOT_READ = ("openAPIV3Schema",)
"""Our own definition: an empty default there says something."""


@pytest.mark.parametrize("name", ["1.30.9", "1.30.9-eks-1"])
def test_an_older_kubernetes_is_refused(helm: Helm, name: str) -> None:
    with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.31\.0-0"):
        rendered(helm, CHART, {}, f"--kube-version={name}")


@pytest.mark.parametrize("value", ["podMonitor", "serviceMonitor", "prometheusRule"])
def test_monitors_need_the_prometheus_operator(helm: Helm, value: str) -> None:
    wanted = {"metrics": {value: {"enabled": True}}}
    with pytest.raises(HelmError, match=rf"metrics\.{value}\.enabled is true, but this cluster does not serve"):
        rendered(helm, CHART, wanted)
    rendered(helm, CHART, wanted, MONITORING)


def test_by_default_there_are_no_monitors_even_where_they_are_known(helm: Helm) -> None:
    assert rendered(helm, CHART, {}, MONITORING) == rendered(helm)


def test_rendering_twice_gives_the_same(helm: Helm) -> None:
    assert rendered(helm, CHART, FULL, MONITORING) == rendered(helm, CHART, FULL, MONITORING)


def test_the_definition_is_the_operators_own(helm: Helm) -> None:
    definition = one(rendered(helm), "CustomResourceDefinition")
    ours = crd.definition()
    assert definition["spec"] == ours["spec"]
    assert definition["metadata"]["name"] == ours["metadata"]["name"]
    assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in one(rendered(helm, CHART, {"crds": {"keep": False}}), definition["kind"])["metadata"]


def test_the_selector_never_changes(helm: Helm) -> None:
    """It is immutable: what a user or a new version adds to it would make every upgrade fail."""
    selectors = []
    for values in ({}, {"commonLabels": {"app.kubernetes.io/name": "x", "a": "b"}, "podLabels": {"c": "d"}}, FULL):
        deployment = one(rendered(helm, CHART, values, MONITORING), "Deployment")
        selectors.append(deployment["spec"]["selector"]["matchLabels"])
        assert selectors[0].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert selectors == [{"app.kubernetes.io/name": "tailorpo-operator", "app.kubernetes.io/instance": "tailorpo"}] * 3


def trainer_image(objects: list[Object]) -> str:
    return str({each["name"]: each.get("value") for each in container(objects)["env"]}["TAILORPO_TRAINER_IMAGE"])


@pytest.mark.parametrize(("values", "operator", "trainer"), [
    ({}, f"tailorpo-operator:{version('tailorpo')}", naming.IMAGE),
    ({"image": {"registry": "a.example"}}, f"a.example/tailorpo-operator:{version('tailorpo')}", naming.IMAGE),
    ({"global": {"imageRegistry": "m.example/x/"}, "image": {"registry": "a.example", "repository": "o", "tag": "1"},
      "trainer": {"image": {"repository": "t", "tag": "2"}}}, "m.example/x/o:1", "m.example/x/t:2"),
    ({"image": {"tag": "1", "digest": f"sha256:{'0' * 64}"}, "trainer": {"image": {"digest": f"sha256:{'1' * 64}"}}},
     f"tailorpo-operator@sha256:{'0' * 64}", f"tailorpo-trainer@sha256:{'1' * 64}"),
])  # fmt: skip
def test_images(helm: Helm, values: Object, operator: str, trainer: str) -> None:
    objects = rendered(helm, CHART, values)
    assert (container(objects)["image"], trainer_image(objects)) == (operator, trainer)


def test_the_operators_pod_names_no_user(helm: Helm) -> None:
    text = helm.template("tailorpo", CHART)
    assert not re.search(r"^\s*(runAsUser|runAsGroup|fsGroup):", text.split("kind: Deployment")[1], re.MULTILINE)


@pytest.mark.parametrize(("values", "sentence"), [
    ({"replicaCuont": 2}, "additional properties 'replicaCuont' not allowed"),
    ({"image": {"tags": "1"}}, "additional properties 'tags' not allowed"),
    ({"replicaCount": "two"}, "'/replicaCount': got string, want integer"),
    ({"replicaCount": -1}, "'/replicaCount': minimum: got -1, want 0"),
    ({"image": {"digest": "sha256:12"}}, "'/image/digest': 'sha256:12' does not match pattern"),
    ({"watchNamespaces": ["Team"]}, "'/watchNamespaces/0': 'Team' does not match pattern"),
    ({"image": {"pullPolicy": "always"}}, "'/image/pullPolicy': value must be one of"),
])  # fmt: skip
def test_the_schema_says_what_is_wrong(helm: Helm, values: Object, sentence: str) -> None:
    with pytest.raises(HelmError) as caught:
        rendered(helm, CHART, values)
    assert sentence in str(caught.value)


def test_names_follow_the_release(helm: Helm) -> None:
    def name(release: str, *arguments: str) -> str:
        found = re.search(r"kind: Deployment\nmetadata:\n  name: (\S+)", helm.template(release, CHART, *arguments))
        assert found is not None
        return found[1]

    assert name("tailorpo") == "tailorpo-operator"
    assert name("my-tailorpo") == "my-tailorpo-operator"
    assert name("platform") == "platform-tailorpo-operator"
    assert name("tailorpo", "--set=fullnameOverride=short") == "short-operator"
    assert len(name("p" * 53)) <= 63


RULES = """groups:
  - name: jobs
    rules:
      - alert: JobFails
        expr: tailorpo_job_failed > 0
        annotations: {summary: "{{ $labels.job_name }} fails"}
      - record: job:steps:rate5m
        expr: rate(tailorpo_step[5m])
      - alert: JobStalls
        expr: job:steps:rate5m == 0
"""
RULES_OF_ANOTHER_FILE = "groups: [{name: operator, rules: [{alert: OperatorIsDown, expr: up == 0}]}]"


def with_files(folder: Path, files: dict[str, str]) -> Path:
    """A copy of the chart with these rules and dashboards alone."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("rules", "dashboards"))
    for name, text in files.items():
        path = chart / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return chart


def test_what_looks_like_a_template_in_rules_and_dashboards_is_kept(helm: Helm, tmp_path: Path) -> None:
    dashboard = '{"title": "Jobs", "legend": "{{job_name}}"}\n'
    chart = with_files(tmp_path, {"rules/a.yaml": RULES, "dashboards/tailorpo-jobs.json": dashboard})
    annotations = {"grafana_folder": "TailorPO"}
    metrics = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True, "annotations": annotations}}
    objects = rendered(helm, chart, {"metrics": metrics}, MONITORING)
    [first, *_] = one(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert first["annotations"]["summary"] == "{{ $labels.job_name }} fails"
    found = one(objects, "ConfigMap")
    assert found["metadata"]["name"] == "tailorpo-dashboard-jobs"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == annotations
    assert found["data"] == {"tailorpo-jobs.json": dashboard}


def test_without_rules_and_dashboards_there_is_nothing(helm: Helm, tmp_path: Path) -> None:
    metrics = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}
    chart = with_files(tmp_path, {})
    assert rendered(helm, chart, {"metrics": metrics}, MONITORING) == rendered(helm, chart)


def test_alerts_can_be_left_out(helm: Helm, tmp_path: Path) -> None:
    chart = with_files(tmp_path, {"rules/a.yaml": RULES, "rules/b.yaml": RULES_OF_ANOTHER_FILE})

    def groups(*disabled: str) -> Object:
        values = {"metrics": {"prometheusRule": {"enabled": True, "disabled": [*disabled], "labels": {"release": "k"}}}}
        rule = one(rendered(helm, chart, values, MONITORING), "PrometheusRule")
        assert rule["metadata"]["labels"]["release"] == "k"
        found = {group["name"]: group["rules"] for group in rule["spec"]["groups"]}
        return {name: [each.get("alert", each.get("record")) for each in rules] for name, rules in found.items()}

    assert groups() == {"jobs": ["JobFails", "job:steps:rate5m", "JobStalls"], "operator": ["OperatorIsDown"]}
    assert groups("JobFails", "OperatorIsDown") == {"jobs": ["job:steps:rate5m", "JobStalls"]}


def test_alerts_can_be_retuned(helm: Helm) -> None:
    """The shipped ones: each ends with its threshold."""

    def alerts(**values: Any) -> dict[str, Object]:
        metrics = {"metrics": {"prometheusRule": {"enabled": True, **values}}}
        groups = one(rendered(helm, CHART, metrics, MONITORING), "PrometheusRule")["spec"]["groups"]
        return {each["alert"]: each for group in groups for each in group["rules"] if "alert" in each}

    shipped = alerts()
    tuned = alerts(
        overrides={"TailorPOStalled": {"for": "2h", "severity": "info"}, "TailorPOSlow": {"threshold": 0.25}},
        runbookUrl="https://wiki.example.com/runbooks.html",
    )
    assert shipped.keys() == tuned.keys()
    stalled, slow = tuned["TailorPOStalled"], tuned["TailorPOSlow"]
    assert (stalled["for"], stalled["labels"]["severity"]) == ("2h", "info")
    assert stalled["expr"] == shipped["TailorPOStalled"]["expr"]
    assert slow["expr"].rstrip().endswith(" 0.25")
    assert slow["expr"].rstrip().rpartition(" ")[0] == shipped["TailorPOSlow"]["expr"].rstrip().rpartition(" ")[0]
    pages = {each["annotations"]["runbook_url"].partition("#")[0] for each in tuned.values()}
    assert pages == {"https://wiki.example.com/runbooks.html"}


def test_an_override_of_what_no_alert_has_is_refused(helm: Helm) -> None:
    values = {"metrics": {"prometheusRule": {"enabled": True, "overrides": {"TailorPOSlow": {"treshold": 1}}}}}
    with pytest.raises(HelmError, match="treshold"):
        rendered(helm, CHART, values, MONITORING)
