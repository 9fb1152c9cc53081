"""Releases of the chart on a control plane without kubelets: the pod driver and a process play its Deployment."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from kubernetes.client import CoreV1Api
from ruamel.yaml import YAML

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import GROUP, PLURAL
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import Helm
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import WarmOperator, Watched

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tailorpo"
MONITORING = "--api-versions=monitoring.coreos.com/v1"
NAMESPACE = "tailorpo-system"
OPERATORS = "app.kubernetes.io/name=tailorpo-operator"
HELM_SECONDS = 90.0  # seconds; a machine that is shared can be slow

Object = dict[str, Any]
Values = Mapping[str, Any]


def rendered(helm: Helm, chart: Path = CHART, values: Values | Path | None = None, *arguments: str) -> list[Object]:
    """The objects that the chart renders to. values: as a mapping or as a file."""
    files = [values] if isinstance(values, Path) else []
    sets = [f"--set-json={json.dumps(values)}"] if isinstance(values, Mapping) else []
    text = helm.template("tailorpo", chart, f"--namespace={NAMESPACE}", *sets, *arguments, values=files)
    return [each for each in YAML(typ="safe", pure=True).load_all(text) if each]


def identity(each: Object) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    return each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]


class Release:
    """A release, and its namespace, which `install` creates."""

    def __init__(self, plane: ControlPlane, driver: PodDriver, folder: Path, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace
        self.helm = Helm(folder / "helm", plane.kubeconfig, namespace)
        self.kubectl = plane.kubectl(namespace)
        self.folder = folder
        self._plane, self._driver = plane, driver
        self._operators = 0

    @cached_property
    def user(self) -> str:
        """The operator, as the audit log names it."""
        account = self.deployment()["spec"]["template"]["spec"]["serviceAccountName"]
        return f"system:serviceaccount:{self.namespace}:{account}"

    def install(self, *arguments: str, chart: Path = CHART) -> str:
        """Installs it and waits, as Helm does, until the Deployment's pods are ready; returns the notes."""
        return self._rolled_out("install", self.name, str(chart), "--create-namespace", *arguments)

    def upgrade(self, *arguments: str, chart: Path = CHART) -> str:
        return self._rolled_out("upgrade", self.name, str(chart), *arguments)

    def rollback(self, revision: int) -> str:
        return self._rolled_out("rollback", self.name, str(revision))

    def uninstall(self) -> str:
        return self.helm("uninstall", self.name, "--wait")

    def _rolled_out(self, *arguments: str) -> str:
        """Runs Helm until its end, and meanwhile makes each pod of the Deployment ready."""
        with ThreadPoolExecutor(1) as pool, self._plane.api() as api:
            helm, core = pool.submit(self.helm, *arguments, "--wait", f"--timeout={HELM_SECONDS:.0f}s"), CoreV1Api(api)

            def over() -> bool:
                for pod in core.list_namespaced_pod(self.namespace, label_selector=OPERATORS).items:
                    if pod.status.phase == "Pending" and self._driver.alive(pod.spec.node_name):
                        self._driver.run(pod)
                return helm.done()

            until(over, f"helm {arguments[0]} ends", 2 * HELM_SECONDS)
            return helm.result()

    def deployment(self) -> Object:
        [found] = self.kubectl.json("get", "deployments", f"--selector=app.kubernetes.io/instance={self.name}")["items"]
        return dict(found)

    @contextmanager
    def operator(self) -> Iterator[WarmOperator]:
        """A process that does what the Deployment's container would: its arguments, environment and rights."""
        pod = self.deployment()["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["args"][0] == "operator"
        fields = {"metadata.namespace": self.namespace}
        environment = {
            each["name"]: each.get("value") or fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            for each in container["env"]
        }
        user = self._plane.service_account(self.namespace, pod["serviceAccountName"])
        self._operators += 1
        log = self.folder / f"operator-{self._operators}.log"
        arguments = ("--leader-elect", *container["args"][1:])
        with WarmOperator(user, log, *arguments, prepare=partial(_set, environment)) as operator:
            until(lambda: operator.ask("/readyz")[0] == 200 and "leading" in operator.logged(), "the operator leads")
            try:
                yield operator
            finally:
                if operator.running:
                    operator.stop()  # so that the next one need not wait for the end of the Lease


def _set(environment: Mapping[str, str]) -> None:
    os.environ.update(environment)


def footprint(watched: Watched) -> Object:
    """What must not change while nothing happens to a job: its own identity, and that of its Jobs and pods."""

    def uids(kind: str) -> list[str]:
        selector = f"--selector={naming.JOB}={watched.name}"
        return sorted(each["metadata"]["uid"] for each in watched.kubectl.json("get", kind, selector)["items"])

    job = watched.get()
    status = {key: job["status"].get(key) for key in ("phase", "restarts", "attempts")}
    return {"job": job["metadata"]["uid"], "spec": job["spec"], **status, "jobs": uids("jobs"), "pods": uids("pods")}


def remove_all(plane: ControlPlane, *namespaces: str) -> None:
    """Removes what a release or `manifests/` may have left: the definition with all jobs, roles, namespaces."""
    kubectl = plane.kubectl()
    kubectl("delete", "crd", f"{PLURAL}.{GROUP}", "--ignore-not-found")
    kubectl("delete", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/part-of=tailorpo")
    kubectl("delete", "namespace", *namespaces, "--ignore-not-found", "--wait=false")
