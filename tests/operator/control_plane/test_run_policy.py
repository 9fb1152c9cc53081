"""`runPolicy` and edits on a real API server: suspension, deadlines, clean-up, what counts from when."""

import json
from typing import Any

import pytest

from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, Watched, job, last_words

pytestmark = pytest.mark.usefixtures("operator")


def edit(watched: Watched, **spec: Any) -> None:
    watched.kubectl("patch", "tpj", watched.name, "--type=merge", "--patch", json.dumps({"spec": spec}))


def gone(watched: Watched, *kinds: str) -> None:
    """Waits until nothing of these kinds is left in the namespace."""

    def check() -> bool:
        left = watched.kubectl.json("get", ",".join(kinds))["items"]
        return not [each for each in left if each["metadata"]["name"] != "kubernetes"]

    until(check, f"no {kinds} is left")


def test_suspend_and_resume(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    pod_driver.sigterm_exit = ExitCode.STOPPED
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    edit(watched, runPolicy={"suspend": True})
    watched.phase("Suspended")
    gone(watched, "pods", "jobs")
    assert watched.condition("Suspended")["status"] == "True"
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("Suspended", False)
    edit(watched, runPolicy={"suspend": False})
    watched.run(2)
    assert watched.condition("Suspended")["status"] == "False"
    status = watched.finish(2)
    assert status["failures"] == 0
    # A scheduler that has not seen the test's nodes yet may say so.
    assert [reason for reason, _ in watched.events() if reason != "Unschedulable"] == [
        "AttemptStarted", "Running", "Suspended", "Resumed", "AttemptStarted", "Running", "Succeeded",
    ]  # fmt: skip


def test_a_job_that_is_born_suspended(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"suspend": True}))
    watched.phase("Suspended")
    gone(watched, "pods", "jobs", "services")
    edit(watched, runPolicy={"suspend": False})
    watched.run(1)


def test_the_active_deadline(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"activeDeadlineSeconds": 2}))
    watched.run(1)
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "DeadlineExceeded"
    assert "activeDeadlineSeconds" in status["message"]
    gone(watched, "pods")


def test_the_active_deadline_passes_while_the_operator_is_down(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"activeDeadlineSeconds": 3600}))
    watched.run(1)
    operator.kill()
    edit(watched, runPolicy={"activeDeadlineSeconds": 1})
    operator.start()
    watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "DeadlineExceeded"


def test_time_to_live(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"ttlSecondsAfterFinished": 1}))
    watched.run(1)
    for pod in watched.pods(1):
        pod_driver.end(pod, 0, last_words(0, step=100))
    gone(watched, "tpj", "jobs", "pods", "services")


def test_time_to_live_passes_while_the_operator_is_down(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    watched.finish(1)
    operator.kill()
    edit(watched, runPolicy={"ttlSecondsAfterFinished": 0})
    operator.start()
    gone(watched, "tpj", "jobs", "pods", "services")


@pytest.mark.parametrize("when", ["pending", "running", "restarting"])
def test_a_job_may_be_deleted_at_any_moment(kubectl: Kubectl, pod_driver: PodDriver, when: str) -> None:
    watched = Watched(kubectl, pod_driver, job())
    if when != "pending":
        pods = watched.run(1)
        if when == "restarting":
            pod_driver.end(pods[0], ExitCode.INTERNAL, last_words(ExitCode.INTERNAL))
    kubectl("delete", "tpj", "animals", "--timeout=10s")  # no finalizer keeps it
    gone(watched, "tpj", "jobs", "pods", "services")


def test_delete_and_apply_again(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    """The new job waits for the old one's pods: two writers never meet."""
    pod_driver.sigterm_exit = ExitCode.STOPPED
    watched = Watched(kubectl, pod_driver, job())
    first = {pod.metadata.uid for pod in watched.run(1)}
    kubectl("delete", "tpj", "animals")
    watched = Watched(kubectl, pod_driver, job())
    until(lambda: watched.status.get("attempts"), "the new job begins")
    second = until(
        lambda: {pod.metadata.uid for pod in watched.pods(1)} if watched.attempt_jobs() else None, "the new pods"
    )
    assert not first & second
    watched.run(1)


def test_the_template_counts_from_the_next_attempt(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    edit(watched, workers=1, template={"image": "example.invalid/new:2"})
    until(lambda: watched.status["observedGeneration"] == 2, "the edit was seen")
    assert {pod.metadata.uid for pod in watched.pods(1)} == {pod.metadata.uid for pod in pods}
    watched.workers = 1
    pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
    (pod,) = watched.run(2)
    assert pod.spec.containers[0].image == "example.invalid/new:2"


def test_more_iterations_extend_a_run(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    edit(watched, training={"iterations": 200})
    for pod in watched.pods(1):
        pod_driver.end(pod, 0, last_words(0, step=100))
    assert watched.ended(1)["reason"] == "Extended"
    watched.run(2)
    for pod in watched.pods(2):
        pod_driver.end(pod, 0, last_words(0, step=200, of=200))
    assert watched.phase("Succeeded")["progress"]["steps"] == "200/200"


def test_the_experiment_is_immutable(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    with pytest.raises(AssertionError, match="as a job of another name"):
        edit(watched, lora={"rank": 16})
