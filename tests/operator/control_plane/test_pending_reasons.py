"""The status shows why an attempt does not run, with the original message; after a deadline the job fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.api import Kubectl, KubectlError
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job

pytestmark = pytest.mark.usefixtures("operator")


def says(watched: Watched, reason: str, words: str, *, first: str = "") -> None:
    """Waits until the status names this reason, in the condition, the message and an event.

    first: words of the event, where the reason may have been told before the words came.
    """

    def check() -> bool:
        condition, status = watched.condition("PodsReady"), watched.status
        assert condition["reason"] == reason, condition
        assert words in status["message"], status["message"]
        assert (status["phase"], status["reason"]) == ("Pending", reason)
        header, row = watched.kubectl("get", "tpj", watched.name).splitlines()
        assert row.split()[header.split().index("REASON")] == reason
        return True

    until(check, f"{watched.name} waits because of {reason}")

    def reported() -> bool:
        events = watched.events()
        assert (first or words) in dict(events).get(reason, ""), events
        return True

    until(reported, "the event")


def quota(**hard: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}


def other_job(name: str) -> dict[str, Any]:
    """A batch/v1 Job without pods."""
    container = {"name": "other", "image": "example.invalid/other:1"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"suspend": True, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def test_an_image_that_cannot_be_pulled(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(template={"image": "example.invalid/none:1"}))
    for pod in watched.pods(1):
        pod_driver.refuse_image(pod)
    says(watched, "ImagePullBackOff", "example.invalid/none:1")
    watched.run(1)  # the image was pushed meanwhile


def test_a_secret_that_is_missing(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    storage = {"storage": "s3://models/animals", "secretName": "s3"}
    watched = Watched(kubectl, pod_driver, job(checkpoint=storage))
    for pod in watched.pods(1):
        pod_driver.wait(pod, "CreateContainerConfigError", 'secret "s3" not found')
    says(watched, "CreateContainerConfigError", 'secret "s3" not found')


def test_no_node_has_room(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    template = {"resources": {"limits": {"nvidia.com/gpu": 64}}}
    watched = Watched(kubectl, pod_driver, job(template=template))
    # The scheduler's first try may not know the new nodes yet, or may still know their taint.
    says(watched, "Unschedulable", "Insufficient nvidia.com/gpu", first="available")


def test_a_service_account_that_is_missing(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(template={"serviceAccountName": "nobody"}))
    says(watched, "ServiceAccountNotFound", "nobody")
    kubectl("create", "serviceaccount", "nobody")
    watched.run(1)


def test_a_priority_class_that_is_missing(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(scheduling={"priorityClassName": "urgent"}))
    says(watched, "PriorityClassNotFound", "urgent")


def test_a_quota_of_pods(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl.apply(quota(pods="1"))
    watched = Watched(kubectl, pod_driver, job())
    says(watched, "QuotaExceeded", "exceeded quota: small")
    kubectl("delete", "quota", "small")
    watched.run(1)


def test_a_quota_of_jobs(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl.apply(quota(**{"count/jobs.batch": "0"}))
    until(lambda: kubectl.json("get", "quota", "small")["status"].get("hard"), "the quota counts")
    watched = Watched(kubectl, pod_driver, job())
    says(watched, "QuotaExceeded", "exceeded quota: small")
    kubectl("delete", "quota", "small")
    watched.run(1)


def test_pod_security(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
    watched = Watched(kubectl, pod_driver, job(template={"hostNetwork": True}))
    says(watched, "PodSecurity", "hostNetwork=true")


def test_a_name_that_is_taken(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl.apply(other_job("animals-0001"))
    watched = Watched(kubectl, pod_driver, job())
    says(watched, "NameTaken", "animals-0001")
    assert kubectl.json("get", "job", "animals-0001")["spec"]["template"]["spec"]["containers"][0]["name"] == "other"
    kubectl("delete", "job", "animals-0001")
    watched.run(1)


def test_a_pod_template_that_the_server_refuses(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    template = {"volumes": [{"name": "data", "hostPath": {"path": "/data", "type": "Cheese"}}]}
    watched = Watched(kubectl, pod_driver, job(template=template))
    says(watched, "Invalid", "Cheese")


def test_what_is_invalid_is_asked_again_only_after_an_edit(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    """However often it is reconciled. A label of the namespace, a quota or a policy may change without the job."""
    gpus: dict[str, Any] = {"resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": 2}}}
    typo: dict[str, Any] = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerm": []}}}
    }
    with OperatorProcess(alone, tmp_path / "log", "--resync-seconds=0.2") as operator:

        def count(metric: str, *labels: str) -> float:
            lines = operator.ask("/metrics")[1].splitlines()
            found = [line for line in lines if line.startswith(metric) and all(label in line for label in labels)]
            return sum(float(line.split()[-1]) for line in found)

        def refused() -> float:
            codes = ('code="422"', 'code="400"')
            return sum(count("tailorpo_operator_api_requests_total", 'verb="create"', code) for code in codes)

        parts = {"a": gpus, "b": typo, "c": {"securityContext": {"runAsUser": "me"}}}
        jobs = [Watched(kubectl, pod_driver, job(name, template=part)) for name, part in parts.items()]
        for watched, words in zip(jobs, ["must be equal to", "nodeSelectorTerm", "cannot unmarshal"], strict=True):
            says(watched, "Invalid", words)
        before = count("tailorpo_operator_reconcile_seconds_count")
        until(lambda: count("tailorpo_operator_reconcile_seconds_count") >= before + 20, "it reconciles on and on")
        assert refused() == 3
        for watched in jobs:
            kubectl.apply(job(watched.name, template={"image": "trainer:1"}))
            watched.run(1)
        assert refused() == 3


def test_a_quota_that_demands_requests(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl.apply(quota(**{"requests.cpu": "4"}))
    until(lambda: kubectl.json("get", "quota", "small")["status"].get("hard"), "the quota counts")
    watched = Watched(kubectl, pod_driver, job())
    says(watched, "QuotaNeedsResources", "must specify requests.cpu for: trainer")
    kubectl.apply(job(template={"resources": {"requests": {"cpu": "1"}}}))
    watched.run(2)  # attempt 1 has ended by the edit


def test_a_limit_range(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    limits = {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    kubectl.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits})
    watched = Watched(kubectl, pod_driver, job(template={"resources": {"limits": {"cpu": "2"}}}))
    says(watched, "LimitRange", "maximum cpu usage per Container is 1, but limit is 2")


def test_a_policy_that_demands_a_label(kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path) -> None:
    """Of the Job, and then of its pods. A label is no new generation of the job, and helps at once."""
    here = {"kubernetes.io/metadata.name": kubectl.namespace}
    for group, resource in [("batch", "jobs"), ("", "pods")]:
        rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
        label = f"{resource}-team"
        condition = f"has(object.metadata.labels) && '{label}' in object.metadata.labels"
        policy = {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": condition, "message": label}],
        }
        binding = {
            "policyName": f"{kubectl.namespace}-{resource}",
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": here}},
        }
        api, name = "admissionregistration.k8s.io/v1", {"name": f"{kubectl.namespace}-{resource}"}
        kubectl.apply(
            {"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": name, "spec": policy},
            {"apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": name, "spec": binding},
        )

    def denies(what: dict[str, Any]) -> bool:
        try:
            kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(what))
        except KubectlError as refusal:
            return "denied request" in str(refusal)
        return False

    container = {"name": "any", "image": "example.invalid/any:1"}
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": {"containers": [container]}}
    until(lambda: denies(other_job("any")) and denies(bare), "the policies are in force")
    with WarmOperator(alone, tmp_path / "log", "--copied-prefix=pods-", "--copied-prefix=jobs-"):
        watched = Watched(kubectl, pod_driver, job())
        says(watched, "PolicyDenied", "denied request: jobs-team")
        kubectl("label", "tpj", watched.name, "jobs-team=x")
        says(watched, "PolicyDenied", "denied request: pods-team", first="denied request")
        kubectl("label", "tpj", watched.name, "pods-team=x")
        watched.run(2)
        assert watched.attempt(1)["reason"] == "SpecChanged"
        Watched(kubectl, pod_driver, job("other", template={"labels": {"jobs-team": "y", "pods-team": "y"}})).run(1)


def test_a_misspelt_field_of_a_pod_template(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    """Fields that the operator does not read are not dropped silently either."""
    watched = Watched(kubectl, pod_driver, job(template={"securityContext": {"runAsNonroot": True}}))
    says(watched, "Invalid", 'unknown field "spec.template.spec.containers[0].securityContext.runAsNonroot"')


def test_a_document_that_is_too_large(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    prompts = [f"a photo of a cat, number {number}, " + "very " * 100 for number in range(200)]
    watched = Watched(kubectl, pod_driver, job(prompts={"list": prompts}))
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "TooLarge"
    assert "65,536" in status["message"]
    assert "configMapKeyRef" in status["message"]


def test_the_start_deadline(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    template = {"resources": {"limits": {"nvidia.com/gpu": 64}}}
    watched = Watched(kubectl, pod_driver, job(template=template, runPolicy={"startDeadlineSeconds": 2}))
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "StartDeadlineExceeded"
    assert "nvidia.com/gpu" in status["message"]
    until(lambda: not json.loads(kubectl("get", "pods", "--output=json"))["items"], "nothing is left")


def test_the_start_deadline_of_what_cannot_even_be_made(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    kubectl.apply(quota(**{"count/jobs.batch": "0"}))
    until(lambda: kubectl.json("get", "quota", "small")["status"].get("hard"), "the quota counts")
    watched = Watched(kubectl, pod_driver, job(runPolicy={"startDeadlineSeconds": 2}))
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "StartDeadlineExceeded"
    assert "exceeded quota" in status["message"]


def test_what_is_left_of_a_deleted_job_of_the_same_name(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    gone = Watched(kubectl, pod_driver, job(runPolicy={"suspend": True}))
    gone.phase("Suspended")
    names = {"apiVersion": "tailorpo.dev/v1alpha1", "kind": "TailorPOJob", "name": "animals"}
    left = other_job("animals-0001")
    left["metadata"] |= {
        "finalizers": ["example.invalid/kept"],
        "ownerReferences": [names | {"uid": gone.get()["metadata"]["uid"], "controller": True}],
    }
    kubectl.apply(left)
    kubectl("delete", "tpj", "animals")
    watched = Watched(kubectl, pod_driver, job())
    says(watched, "NameTaken", "Job animals-0001 of a deleted TailorPOJob of this name is still there")
    kubectl("patch", "job", "animals-0001", "--type=merge", '--patch={"metadata": {"finalizers": null}}')
    watched.run(1)
