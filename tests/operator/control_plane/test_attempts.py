"""How attempts end on a real API server, and what follows: every row of the table in `docs/api.md`."""

import re
from collections.abc import Callable

import pytest
from kubernetes.client import V1Pod

from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, Watched, job, last_words

Ending = Callable[[PodDriver, V1Pod], None]

pytestmark = pytest.mark.usefixtures("operator")


def exits(code: int, reason: str = "") -> Ending:
    return lambda driver, pod: driver.end(pod, code, last_words(code), reason)


def test_a_whole_life(kubectl: Kubectl, pod_driver: PodDriver, control_plane: ControlPlane) -> None:
    mark = control_plane.audit.mark()
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    status = watched.finish(1)
    assert status["progress"]["steps"] == "100/100"
    assert status["adapter"] == "s3://models/animals/adapter"
    assert status["checkpoint"]["step"] == 100
    assert status["message"] == "done: 100/100 iterations"
    attempt = watched.attempt(1)
    assert (attempt["reason"], attempt["exitCode"], attempt["counted"]) == ("Completed", 0, False)
    kubectl("wait", "--for=condition=Succeeded", "tpj/animals", "--timeout=5s")
    reported = [reason for reason, _ in watched.events()]
    assert [reason for reason in reported if reason != "Unschedulable"] == ["AttemptStarted", "Running", "Succeeded"]
    story = kubectl("describe", "tpj", "animals").partition("Events:")[2]
    assert re.findall(r"(AttemptStarted|Running|Succeeded) +\d+s", story) == ["AttemptStarted", "Running", "Succeeded"]
    meta = watched.get()["metadata"]
    assert "finalizers" not in meta
    assert set(meta.get("annotations", {})) == {"kubectl.kubernetes.io/last-applied-configuration"}
    requests = control_plane.audit.since(mark)
    writes = [each for each in requests if each.writes and "tailorpo-operator" in each.user]
    writes = [each for each in writes if each.namespace == kubectl.namespace]
    assert 0 < len(writes) <= 12, "\n".join(f"{each.verb} {each.path}" for each in writes)
    assert {each.code // 100 for each in writes} == {2}, writes


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ExitCode.OUT_OF_RESOURCES, "OutOfResources"),
        (ExitCode.INTERNAL, "InternalError"),
        (ExitCode.UNAVAILABLE, "Unavailable"),
        (ExitCode.STALLED, "Stalled"),
        (137, "Killed"),
        (3, "Error"),
    ],
)
def test_counted_ends(kubectl: Kubectl, pod_driver: PodDriver, code: int, reason: str) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"backoffLimit": 1}))
    for number in (1, 2):
        pods = watched.run(number)
        pod_driver.end(pods[1], code, last_words(code, step=10 * number))
        end = watched.ended(number)
        assert (end["reason"], end["exitCode"], end["counted"], end["rank"]) == (reason, code, True, 1)
        assert end["stepTo"] == 10 * number
        assert end["node"] == pods[1].spec.node_name
        assert f"exit code {code}" in end["message"]
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == "BackoffLimitExceeded"
    assert (status["failures"], status["restarts"]) == (2, 1)
    assert len(watched.attempt_jobs()) == 2  # for `kubectl logs`


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ExitCode.CONFIGURATION, "ConfigurationError"),
        (ExitCode.BAD_DATA, "DataError"),
        (ExitCode.NOT_FINITE, "NotFinite"),
        (ExitCode.USAGE, "UsageError"),
    ],
)
def test_ends_that_no_other_attempt_would_change(
    kubectl: Kubectl, pod_driver: PodDriver, code: int, reason: str
) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    pod_driver.end(pods[0], code, last_words(code, "spec.lora.rank: 0 must be at least 1"))
    status = watched.phase("Failed")
    assert watched.condition("Failed")["reason"] == reason
    assert status["message"] == "spec.lora.rank: 0 must be at least 1"
    assert len(status["attempts"]) == 1
    kubectl("wait", "--for=condition=Failed", "tpj/animals", "--timeout=5s")


def oom(driver: PodDriver, pod: V1Pod) -> None:
    driver.oom(pod)


def test_out_of_memory_names_the_limit_and_what_to_lower(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    template = {"resources": {"limits": {"memory": "1Gi", "cpu": "1"}}}
    watched = Watched(kubectl, pod_driver, job(template=template))
    pods = watched.run(1)
    pod_driver.oom(pods[0])
    end = watched.ended(1)
    assert (end["reason"], end["exitCode"], end["counted"]) == ("OOMKilled", 137, True)
    assert "1Gi" in end["message"]
    assert "training.microBatchSize" in until(lambda: dict(watched.events()).get("OOMKilled"), "the event")
    watched.run(2)


@pytest.mark.parametrize(
    ("disruption", "reason"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("EvictionByEvictionAPI", "Drained"),
        ("TerminationByKubelet", "Evicted"),
        ("DeletionByTaintManager", "NodeLost"),
    ],
)
def test_disruptions_are_not_counted(kubectl: Kubectl, pod_driver: PodDriver, disruption: str, reason: str) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"backoffLimit": 0}))
    pods = watched.run(1)
    pod_driver.disrupt(pods[1], reason=disruption)
    kubectl("delete", "pod", pods[1].metadata.name, "--wait=false", "--ignore-not-found")
    end = watched.ended(1)
    assert (end["reason"], end["counted"], end["node"]) == (reason, False, pods[1].spec.node_name)
    watched.run(2)
    assert watched.status["failures"] == 0
    watched.finish(2)


def test_a_real_eviction(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    kubectl("drain", pods[0].spec.node_name, "--force", "--delete-emptydir-data")
    assert watched.ended(1)["reason"] == "Drained"


def test_a_lost_node(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    """Its pod never ends by itself; the gang goes on elsewhere once it is taken for lost."""
    policy = {"terminationGracePeriodSeconds": 1}
    watched = Watched(kubectl, pod_driver, job(runPolicy=policy, workers=1))
    (pod,) = watched.run(1)
    pod_driver.lose(pod.spec.node_name)
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("NodeLost", False)
    (again,) = watched.run(2)
    assert again.spec.node_name != pod.spec.node_name
    watched.finish(2)


def test_a_lost_node_that_its_peers_miss_first(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job(runPolicy={"terminationGracePeriodSeconds": 1}))
    pods = watched.run(1)
    pod_driver.lose(pods[0].spec.node_name)
    if pods[1].spec.node_name != pods[0].spec.node_name:
        pod_driver.end(pods[1], ExitCode.STALLED, last_words(ExitCode.STALLED, "rank 0 does not answer"))
    end = watched.ended(1)
    assert (end["reason"], end["counted"], end["node"]) == ("NodeLost", False, pods[0].spec.node_name)
    watched.run(2)


def test_a_pod_deleted_by_hand(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    kubectl("delete", "pod", pods[0].metadata.name, "--wait=false")
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("PodDeleted", False)
    watched.run(2)


def test_a_pod_deleted_by_force(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    """One pod of a gang gone while the others go on."""
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    kubectl("delete", "pod", pods[0].metadata.name, "--force", "--grace-period=0")
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("PodDeleted", False)
    watched.run(2)


def test_a_gang_deleted_by_hand(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    kubectl("delete", "job", "animals-0001", "--wait=false")
    end = watched.ended(1)
    assert (end["reason"], end["counted"]) == ("JobDeleted", False)
    watched.run(2)


def test_a_failing_pod_explains_those_that_are_stopped_after_it(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    pod_driver.end(pods[1], ExitCode.STALLED, last_words(ExitCode.STALLED))
    pod_driver.end(pods[0], ExitCode.OUT_OF_RESOURCES, last_words(ExitCode.OUT_OF_RESOURCES))
    assert watched.ended(1)["reason"] == "OutOfResources"


def test_what_the_operator_missed(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    """It was down for the whole of an attempt's end."""
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    operator.kill()
    pod_driver.end(pods[0], ExitCode.INTERNAL, last_words(ExitCode.INTERNAL))
    until(lambda: watched.attempt_jobs()[0]["status"].get("failed"), "the Job has failed")
    operator.start()
    assert watched.ended(1)["reason"] == "InternalError"
    watched.run(2)


def test_a_done_run_is_done_whatever_the_others_say(kubectl: Kubectl, pod_driver: PodDriver) -> None:
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    pod_driver.end(pods[0], ExitCode.DONE, last_words(0, step=100))
    pod_driver.end(pods[1], ExitCode.STALLED, last_words(ExitCode.STALLED))
    assert watched.phase("Succeeded")["adapter"]
