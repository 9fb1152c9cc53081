"""A job whose pods never all ran: an edit replaces the attempt, and what kept them away is no failure."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import Watched, job, last_words

pytestmark = pytest.mark.usefixtures("operator")

QUOTA = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}}


def no_image(watched: Watched, driver: PodDriver) -> None:
    for pod in watched.pods(1):
        driver.refuse_image(pod)


def no_key(watched: Watched, driver: PodDriver) -> None:
    for pod in watched.pods(1):
        driver.wait(pod, "CreateContainerConfigError", "couldn't find key token in Secret x/hub")


def nothing(watched: Watched, driver: PodDriver) -> None:
    """The cluster itself keeps the pods away."""


def template(**fields: Any) -> dict[str, Any]:
    return {"template": fields}


CASES: dict[str, tuple[dict[str, Any], Callable[[Watched, PodDriver], None], str, dict[str, Any]]] = {
    "image": (template(image="example.invalid/typo:1"), no_image, "ImagePullBackOff", template(image="trainer:1")),
    "secret": (
        template(hubToken={"name": "hub", "key": "token"}),
        no_key,
        "CreateContainerConfigError",
        template(hubToken={"name": "hub", "key": "other"}),
    ),
    "selector": (template(nodeSelector={"zone": "typo"}), nothing, "Unschedulable", template()),
    "processor": (
        template(resources={"limits": {"cpu": "9999"}}),
        nothing,
        "Unschedulable",
        template(resources={"limits": {"cpu": "1"}}),
    ),
    "quota": ({"workers": 2}, nothing, "QuotaExceeded", {"workers": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edit_that_corrects_it(kubectl: Kubectl, pod_driver: PodDriver, case: str) -> None:
    wrong, happen, reason, right = CASES[case]
    if case == "quota":
        kubectl.apply(QUOTA)
        until(lambda: kubectl.json("get", "quota", "small")["status"].get("hard"), "the quota counts")
    watched = Watched(kubectl, pod_driver, job(**wrong))
    happen(watched, pod_driver)
    until(lambda: watched.condition("PodsReady")["reason"] == reason, f"it waits because of {reason}")
    watched = Watched(kubectl, pod_driver, job(**right))
    watched.run(2)
    ended = watched.attempt(1)
    assert (ended["reason"], ended["counted"]) == ("SpecChanged", False)
    assert watched.status["failures"] == 0
    assert watched.status["observedGeneration"] == 2
    assert reason not in watched.status["message"]

    kubectl.apply(job(**right, runPolicy={"stallTimeoutSeconds": 77}))
    until(lambda: "an edit of the job waits for the next attempt" in watched.status["message"], "it says so")
    watched.finish(2)


def test_a_gang_of_which_a_quota_lets_only_a_part_run(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    """More often than its backoff limit allows failures."""
    kubectl.apply(QUOTA)
    until(lambda: kubectl.json("get", "quota", "small")["status"].get("hard"), "the quota counts")
    watched = Watched(kubectl, pod_driver, job(runPolicy={"backoffLimit": 0, "rendezvousTimeoutSeconds": 15}))
    for number in (1, 2):
        [pod] = watched.pods(number, 1)
        pod_driver.run(pod)
        until(lambda: "exceeded quota" in watched.condition("PodsReady")["message"], "it says what keeps one away")
        pod_driver.end(pod, 74, last_words(74, "the 2 nodes did not meet"))
        ended = watched.ended(number)
        assert (ended["reason"], ended["counted"]) == ("QuotaExceeded", False)
        assert "exceeded quota: small" in ended["message"]
    kubectl("delete", "quota", "small")

    def begun() -> int:
        return max((each["number"] for each in watched.status["attempts"] if "end" not in each), default=0)

    last = until(begun, "another attempt begins")
    watched.run(last)
    assert watched.status["failures"] == 0
    watched.finish(last)
