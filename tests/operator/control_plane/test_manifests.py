"""`kubectl apply -k manifests/`: all is taken, the operator's pod may run, and it may do no more than it must."""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from ruamel.yaml import YAML

from tailorpo_operator.api import naming
from tests.cluster.api import Cluster, Kubectl, KubectlError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import until
from tests.documents import GOOD

MANIFESTS = Path(__file__).parents[3] / "manifests"
NAMESPACE, NAME = "tailorpo-system", "tailorpo-operator"


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[Kubectl]:
    """kubectl in the operator's namespace, once all manifests are applied.

    On a control plane of our own: a cluster that is given may have its operator already. Other tests use the
    definition and the rights, so they stay.
    """
    kubectl = control_plane.kubectl(NAMESPACE)
    kubectl("apply", "--server-side", "--kustomize", str(MANIFESTS))
    kubectl("wait", "--for=condition=Established", "crd/tailorpojobs.tailorpo.dev", "--timeout=60s")
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    yield kubectl
    kubectl("delete", "deployment", NAME)


Rights = dict[str, set[str]]


def rights(cluster: Cluster, namespace: str, account: str, where: str) -> Rights:
    """The verbs that the API server lists for a service account in a namespace, by `resource.group` and names."""
    with cluster.api(cluster.service_account(namespace, account)) as api:
        review = {"spec": {"namespace": where}}
        answer = client.AuthorizationV1Api(api).create_self_subject_rules_review(review).status
    assert not answer.incomplete, answer.evaluation_error
    found: Rights = {}
    for rule in answer.resource_rules:
        names = "".join(f"/{name}" for name in rule.resource_names or ())
        for group, resource in product(rule.api_groups, rule.resources):
            found.setdefault(".".join(filter(None, (resource, group))) + names, set()).update(rule.verbs)
    return found


def granted(cluster: Cluster, namespace: str, account: str, where: str) -> Rights:
    """The same without what any service account may."""
    anybody = rights(cluster, namespace, "default", where)
    found = {
        name: verbs - anybody.get(name, set()) for name, verbs in rights(cluster, namespace, account, where).items()
    }
    return {name: verbs for name, verbs in found.items() if verbs}


def test_applying_again_changes_nothing(installed: Kubectl) -> None:
    before = installed.json("get", "deployment", NAME)["metadata"]["generation"]
    installed("apply", "--server-side", "--kustomize", str(MANIFESTS))
    assert installed.json("get", "deployment", NAME)["metadata"]["generation"] == before


@pytest.mark.parametrize("folder", [".", "overlays/ha", "overlays/namespaced"])
def test_no_field_is_misspelt(installed: Kubectl, control_plane: ControlPlane, folder: str) -> None:
    """The overlay for monitoring needs the Prometheus Operator's definitions, which no test has."""
    kustomization = f"--kustomize={MANIFESTS / folder}"
    kubectl = control_plane.kubectl("")  # as a user: an overlay may have objects in several namespaces
    kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server", kustomization)


def test_the_operators_pod_is_made_in_its_restricted_namespace(installed: Kubectl) -> None:
    def pods() -> Any:
        return installed.json("get", "pods", f"--selector=app.kubernetes.io/name={NAME}")["items"]

    [pod] = until(pods, "the pod is made")
    [container] = pod["spec"]["containers"]
    assert (container["command"], container["args"]) == (["tailorpo"], ["operator"])
    assert any("serviceaccount" in mount["mountPath"] for mount in container["volumeMounts"])


RIGHTS: Rights = {
    "tailorpojobs.tailorpo.dev": {"get", "list", "watch", "delete"},
    "tailorpojobs/status.tailorpo.dev": {"patch"},
    "jobs.batch": {"get", "list", "watch", "create", "delete"},
    "services": {"create"},
    "services/tailorpo-rendezvous": {"get", "list", "watch", "delete"},
    "pods": {"list", "watch", "delete"},
    "events": {"list", "create"},
}


def test_the_operator_may_do_what_it_must_and_nothing_else(cluster: Cluster, installed: Kubectl) -> None:
    assert granted(cluster, NAMESPACE, NAME, "default") == RIGHTS
    leases = {
        "leases.coordination.k8s.io": {"create"},
        f"leases.coordination.k8s.io/{NAME}": {"get", "update"},
    }
    assert granted(cluster, NAMESPACE, NAME, NAMESPACE) == RIGHTS | leases


def test_its_token_is_refused_the_rest(cluster: Cluster, installed: Kubectl) -> None:
    operator = cluster.kubectl(NAMESPACE, cluster.service_account(NAMESPACE, NAME))
    operator("get", "jobs,pods,tailorpojobs", "--all-namespaces")
    operator("get", "services", "--all-namespaces", "--field-selector=metadata.name=tailorpo-rendezvous")
    for arguments in (
        "get services",
        "delete service kubernetes --namespace=default",
        "get secrets",
        "get nodes",
        "get namespaces",
        "get configmaps --namespace=default",
        "get --raw=/api/v1/namespaces/default/pods/x/log",
        "create --raw=/api/v1/namespaces/default/pods/x/exec --filename=-",
        "create serviceaccount x",
        "get leases.coordination.k8s.io x --namespace=default",
        f"get leases.coordination.k8s.io x --namespace={NAMESPACE}",
    ):
        with pytest.raises(KubectlError, match=r"[Ff]orbidden"):
            operator(*arguments.split())


@pytest.mark.parametrize(("role", "verbs"), [
    ("view", {"get", "list", "watch"}),
    ("edit", {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}),
])  # fmt: skip
def test_people_have_the_jobs_of_their_namespaces(
    cluster: Cluster, installed: Kubectl, kubectl: Kubectl, role: str, verbs: set[str]
) -> None:
    space = kubectl.namespace
    kubectl("create", "serviceaccount", "person")
    kubectl("create", "rolebinding", "person", f"--clusterrole={role}", f"--serviceaccount={space}:person")

    def jobs() -> Rights:
        found = rights(cluster, space, "person", space)
        return {name: verbs for name, verbs in found.items() if name.startswith("tailorpojobs")}

    assert until(jobs, "the roles are aggregated") == {"tailorpojobs.tailorpo.dev": verbs}


def test_a_job_can_be_applied_then(installed: Kubectl, kubectl: Kubectl) -> None:
    kubectl.apply(GOOD[0])
    assert "vivid" in kubectl("get", "tpj")


def test_images_are_of_this_version() -> None:
    [deployment] = YAML(typ="safe", pure=True).load_all((MANIFESTS / "base" / "deployment.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    image = {variable["name"]: variable.get("value") for variable in container["env"]}["TAILORPO_TRAINER_IMAGE"]
    assert image == naming.IMAGE == f"tailorpo-trainer:{version('tailorpo')}"
    assert container["image"] == f"tailorpo-operator:{version('tailorpo')}"
