"""Why an attempt does not run yet, as a user reads it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailorpo_operator.planning import pending_reason
from tailorpo_operator.planning.observed import AttemptJob, Pod, Reason
from tests.operator.stories import attempt_job, children, pending, pod

UNSCHEDULABLE = Reason("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")


def why(*objects: AttemptJob | Pod, warning: Reason | None = None) -> Reason | None:
    found = next((each for each in objects if isinstance(each, AttemptJob)), None)
    return pending_reason.why(children(*objects, warning=warning), found)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "a-0" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1', "QuotaExceeded"),
        ('pods "a-0" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot', "PodSecurity"),
        (
            'pods "a-0" is forbidden: error looking up service account team/x: serviceaccount "x" not found',
            "ServiceAccountNotFound",
        ),
        ('pods "a-0" is forbidden: no PriorityClass with name high was found', "PriorityClassNotFound"),
        ('pods "a-0" is forbidden: pod rejected: RuntimeClass "nvidia" not found', "RuntimeClassNotFound"),
        (
            'jobs.batch is forbidden: User "system:serviceaccount:tailorpo:operator" cannot create resource "jobs"',
            "Forbidden",
        ),
        ('admission webhook "x.example.com" denied the request: exceeded quota', "WebhookDenied"),
        ('Internal error occurred: failed calling webhook "x.example.com": no endpoints', "WebhookUnavailable"),
        (
            "jobs.batch \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no",
            "PolicyDenied",
        ),
        ('pods "a-0" is forbidden: failed quota: q: must specify limits.cpu for: trainer', "QuotaNeedsResources"),
        ('pods "a-0" is forbidden: minimum memory usage per Pod is 1Gi, but request is 1Mi', "LimitRange"),
        ('pods "a-0" is forbidden: cpu max limit to request ratio per Container is 2, but 4', "LimitRange"),
        (
            'pods "a-0" is forbidden: unable to validate against any security context constraint: [fsGroup]',
            "SecurityContextConstraint",
        ),
        ('jobs.batch "a" is forbidden: unable to create: namespace x is being terminated', "NamespaceTerminating"),
        ('Job.batch "a" is invalid: spec.template.spec.containers[0].resources.requests: no', "Invalid"),
        ('Job in version "v1" cannot be handled as a Job: json: cannot unmarshal string into Go struct', "Invalid"),
        ("something else", "FailedCreate"),
    ],
)
def test_refusals(message: str, reason: str) -> None:
    assert pending_reason.refusal(Reason("FailedCreate", message)) == reason
    assert why(attempt_job(), pending(), warning=Reason("FailedCreate", message)) == Reason(reason, message)


def test_each_is_explained() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operator.md").read_text()
    table = page.partition("## What keeps an attempt from running")[2].partition("\n## ")[0]
    assert [reason for _, reason in pending_reason.REFUSALS if f"`{reason}`" not in table] == []


def test_a_refusal_has_a_reason() -> None:
    assert pending_reason.refusal(Reason("", "no")) == "Refused"


@pytest.mark.parametrize("normal", pending_reason.NORMAL)
def test_nothing_is_out_of_order(normal: str) -> None:
    starting = pending(node="node-0", waiting=Reason(normal, "…"))
    assert why(attempt_job(), starting, pending(1, node="node-1")) is None
    assert why(attempt_job(), pending()) is None


@pytest.mark.parametrize(
    ("stuck", "reason"),
    [
        (
            pending(1, node="n", waiting=Reason("ImagePullBackOff", "back-off pulling x")),
            Reason("ImagePullBackOff", "pod animals-0001-1: back-off pulling x"),
        ),
        (
            pending(1, node="n", waiting=Reason("CreateContainerConfigError", 'secret "s3" not found')),
            Reason("CreateContainerConfigError", 'pod animals-0001-1: secret "s3" not found'),
        ),
        (
            pending(1, node="n", waiting=Reason("ContainerCreating"), warning=Reason("FailedMount", "no such claim")),
            Reason("FailedMount", "pod animals-0001-1: no such claim"),
        ),
        (
            pending(1, unscheduled=UNSCHEDULABLE),
            Reason("Unschedulable", f"pod animals-0001-1: {UNSCHEDULABLE.message}"),
        ),
        (pending(1, unscheduled=Reason("", "…")), Reason("Unschedulable", "pod animals-0001-1: …")),
    ],
)
def test_what_keeps_a_pod(stuck: Pod, reason: Reason) -> None:
    assert why(attempt_job(), pod(), stuck) == reason


def test_a_kubelets_word_is_worth_more_than_the_schedulers() -> None:
    pulling = pending(1, node="n", waiting=Reason("ErrImagePull", "x"))
    assert why(attempt_job(), pending(unscheduled=UNSCHEDULABLE), pulling) == Reason(
        "ErrImagePull", "pod animals-0001-1: x"
    )


def test_what_the_scheduler_said_of_a_pod_is_over_once_it_has_a_node() -> None:
    """It is the newest event about a pod that has waited long, and stays so."""
    starting = pending(1, node="n", warning=Reason("FailedScheduling", "0/1 nodes are available"))
    assert why(attempt_job(), pod(), starting) is None


def test_trouble_of_a_gang_that_has_all_its_pods_is_over() -> None:
    assert why(attempt_job(), pending(), pending(1), warning=Reason("FailedCreate", "exceeded quota")) is None


def test_a_queue() -> None:
    assert why(attempt_job(suspended=True), warning=Reason("FailedCreate", "exceeded quota")) == Reason(
        "Queued", "waits in its queue"
    )


def test_what_is_not_there_was_refused() -> None:
    assert pending_reason.why(children(refused=Reason("Forbidden", "no")), None) == Reason("Forbidden", "no")


def test_pods_that_are_not_ready_any_more_are_named() -> None:
    found = (pod(), pod(1, ready=False), pod(2, phase="Succeeded", ready=False))
    assert pending_reason.not_ready(found) == Reason("NotReady", "1 of 3 pods not ready: animals-0001-1 on node-1")
    many = tuple(replace(pod(index), ready=False) for index in range(1000))
    assert len(pending_reason.not_ready(many).message) < 200
