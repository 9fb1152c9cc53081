"""What random walks have found, each by the shortest walk that shows it."""

import json
import signal
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.proxy import DROP, ApiProxy, through
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job, last_words
from tests.operator.walks.replicas import DEADLINE, ELECT, prepare


def patch(kubectl: Kubectl, kind: str, name: str, change: object) -> None:
    kubectl("patch", kind, name, "--type=merge", f"--patch={json.dumps(change)}")


def test_a_worker_that_is_done_before_the_others_does_not_keep_them_from_being_suspended(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """The others continued: the Job controller stops all pods when one fails, not when one is done."""
    watched = Watched(kubectl, pod_driver, job())
    pods = watched.run(1)
    pod_driver.end(pods[1], ExitCode.DONE, last_words(0))
    until(lambda: watched.attempt_jobs()[0]["status"].get("succeeded"), "one worker is done")
    patch(kubectl, "tpj", watched.name, {"spec": {"runPolicy": {"suspend": True}}})
    watched.phase("Suspended")
    assert watched.attempt(1)["reason"] == "Suspended"


def test_what_is_left_of_an_attempt_that_nobody_wrote_down_says_nothing_of_the_next(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    """The operator dies after creating an attempt Job and before writing the status; then the Job is deleted. The next
    attempt has its number again.
    """
    with ApiProxy(alone, tmp_path) as proxy:
        operator = WarmOperator(proxy.kubeconfig, tmp_path / "log", f"--watch-namespace={kubectl.namespace}")
        proxy.rule = lambda asked: DROP if asked.writes and asked.path.endswith("/status") else 0
        with operator:
            watched = Watched(kubectl, pod_driver, job())
            failed, other = watched.pods(1)
            operator.kill()
            patch(kubectl, "pod", failed.metadata.name, {"metadata": {"finalizers": ["example.com/kept"]}})
            pod_driver.end(failed, ExitCode.INTERNAL, last_words(ExitCode.INTERNAL))
            kubectl("delete", "job", "animals-0001")
            kubectl("wait", "--for=delete", f"pod/{other.metadata.name}", "--timeout=60s")
            proxy.rule = through
            operator.start()
            watched.run(1)
            patch(kubectl, "pod", failed.metadata.name, {"metadata": {"finalizers": []}})
            watched.finish(1)
    assert (watched.attempt(1)["reason"], watched.status["failures"]) == ("Completed", 0)


def test_a_leader_that_was_paused_and_still_leads_sees_what_it_has_missed(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    """Changes before it held its Lease again were lost, although no other operator had acquired it."""
    kubectl("delete", "lease", "tailorpo-operator", "--namespace=tailorpo-system", "--ignore-not-found")

    def lapsed() -> bool:
        lease = kubectl.json("get", "lease", "tailorpo-operator", "--namespace=tailorpo-system")
        renewed = datetime.fromisoformat(lease["spec"]["renewTime"])
        return (datetime.now(UTC) - renewed).total_seconds() > DEADLINE

    with WarmOperator(alone, tmp_path / "log", *ELECT, prepare=partial(prepare, 0.0)) as operator:
        watched = Watched(kubectl, pod_driver, job())
        watched.run(1)
        operator.signal(signal.SIGSTOP)
        patch(kubectl, "tpj", watched.name, {"spec": {"runPolicy": {"suspend": True}}})
        until(lapsed, "its lease was not renewed in time")
        operator.signal(signal.SIGCONT)
        watched.phase("Suspended")


def test_a_pod_that_never_began_on_a_lost_node_keeps_no_job_from_its_end(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """Kubernetes' Job controller kept the pod for ever, because it was deleted and had not failed."""
    watched = Watched(kubectl, pod_driver, job(runPolicy={"terminationGracePeriodSeconds": 1}))
    leader, other = watched.pods(1)
    pod_driver.lose(other.spec.node_name)
    pod_driver.run(leader)
    pod_driver.end(leader, ExitCode.DONE, last_words(0, step=100))
    kubectl("delete", "pod", other.metadata.name, "--wait=false")
    assert watched.phase("Succeeded")["adapter"]
    until(lambda: not kubectl.json("get", "pods")["items"], "no pod is left")


def test_a_job_that_is_applied_again_waits_for_pods_that_no_watch_has_shown(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    """After connections broke, its first attempt started beside the last attempt of the earlier job of its name."""
    with ApiProxy(alone, tmp_path) as proxy:
        arguments = (f"--watch-namespace={kubectl.namespace}",)
        with OperatorProcess(proxy.kubeconfig, tmp_path / "log", *arguments) as operator:
            until(lambda: operator.ask("/readyz")[0] == 200, "it has listed all there is")
            proxy.rule = lambda asked: DROP if asked.watches and asked.path.endswith("/pods") else 0
            proxy.cut()
            watched = Watched(kubectl, pod_driver, job())
            pods = watched.pods(1)
            for pod in pods:
                pod_driver.run(pod)
            nodes = {pod.spec.node_name for pod in pods}
            for node in nodes:
                pod_driver.lose(node)  # the pods stay for a while
            kubectl("delete", "tpj", "animals")
            kubectl("wait", "--for=delete", "job/animals-0001", "--timeout=60s")
            watched = Watched(kubectl, pod_driver, job())
            until(lambda: "waits until" in watched.status.get("message", ""), "it says what it waits for")
            assert watched.attempt_jobs() == []
            proxy.rule = through
            for node in nodes:
                pod_driver.recover(node)
            watched.run(1)
