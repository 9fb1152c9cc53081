"""The whole of it: operator, trainer under torchrun on two nodes, checkpoints in S3. Whatever happens on the way, the
result has the same bits.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tailorpo_operator.api import naming
from tests.cluster.real.cluster import RealCluster
from tests.cluster.real.node import Node
from tests.cluster.waiting import until
from tests.conftest import S3Server
from tests.nodes.environment import (
    BUCKET,
    INTERVAL,
    ITERATIONS,
    NAMESPACE,
    SECRET,
    TIMEOUT_SECONDS,
    Environment,
    Fields,
    working,
)
from tests.operator.operating import Followed

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def environment(
    real_cluster: RealCluster, operator_user: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    with working(real_cluster, operator_user, s3_server, tmp_path_factory.mktemp("operator") / "log") as environment:
        yield environment


@pytest.fixture(scope="module")
def undisturbed(environment: Environment) -> Followed:
    """A job without any fault; it starts when the first test asks for it."""
    return environment.start(environment.document("undisturbed"))


@pytest.fixture(scope="module")
def expected(environment: Environment, undisturbed: Followed) -> dict[str, str]:
    """The result that every other run must have."""
    environment.gate.open(undisturbed.name, 1)
    return environment.result(undisturbed)


def pods(job: Followed, attempt: int) -> list[Fields]:
    """Of an attempt, by index."""
    selector = f"--selector={naming.JOB}={job.name},{naming.ATTEMPT}={attempt}"
    found = job.kubectl.json("get", "pods", selector)["items"]
    index = "batch.kubernetes.io/job-completion-index"
    return sorted(found, key=lambda pod: int(pod["metadata"]["labels"][index]))


def trains(job: Followed, attempt: int) -> Fields:
    """Waits until an attempt has a checkpoint of its own; returns the status."""

    def check() -> Fields | None:
        status = job.status
        if "end" in job.attempt(attempt):
            pytest.fail(f"attempt {attempt} has ended: {status}")
        return status if f"/attempt-{attempt:04d}/" in status.get("checkpoint", {}).get("uri", "") else None

    return until(check, f"attempt {attempt} of {job.name} has a checkpoint", TIMEOUT_SECONDS, INTERVAL)


def trained(job: Followed) -> int | None:
    """The number of the newest attempt, once it has a checkpoint of its own."""
    status = job.status
    number = int(status["attempts"][-1]["number"])
    return number if f"/attempt-{number:04d}/" in status.get("checkpoint", {}).get("uri", "") else None


def told_to_stop(job: Followed, attempt: int) -> None:
    """Waits until a kubelet has sent SIGTERM to the first worker of an attempt."""
    name = pods(job, attempt)[0]["metadata"]["name"]
    selector = f"--field-selector=involvedObject.name={name},reason=Killing"
    event = f"{name} is told to stop"
    until(lambda: job.kubectl.json("get", "events", selector)["items"], event, TIMEOUT_SECONDS, INTERVAL)


def patch(job: Followed, spec: Fields) -> None:
    job.kubectl("patch", "tpj", job.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")


def scraped(environment: Environment, pod: Fields, **labels: str) -> dict[str, float]:
    """The metrics of a pod that have just these labels."""
    reached = environment.cluster.network.reach(pod["status"]["podIP"], naming.METRICS_PORT)
    with urlopen(f"http://{reached}/metrics", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {each.name: each.value for family in families for each in family.samples if each.labels == labels}


def counted(environment: Environment, metric: str, label: str) -> float:
    """A metric of the operator."""
    families = text_string_to_metric_families(environment.operator.ask("/metrics")[1])
    counts = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
    return counts[metric, label]


def test_an_undisturbed_run(environment: Environment, undisturbed: Followed) -> None:
    kubectl, job = environment.kubectl, undisturbed
    status = trains(job, 1)
    assert 0 < status["progress"]["percent"] < 100
    assert status["progress"]["imagesPerSecond"] > 0
    assert {"reward", "gap", "loss", "evaluation"} <= set(status["metrics"])
    assert status["checkpoint"]["uri"].startswith(f"s3://{BUCKET}/undisturbed/attempt-0001/step-")
    assert "resumedFrom" not in status

    leader, other = pods(job, 1)
    assert {pod["spec"]["nodeName"] for pod in (leader, other)} == {"node-0", "node-1"}
    figures = scraped(environment, leader, job_namespace=NAMESPACE, job_name=job.name)
    assert 1 <= figures["tailorpo_step"] <= figures["tailorpo_iterations"] == ITERATIONS
    assert figures["tailorpo_attempt"] == 1
    assert {"tailorpo_reward", "tailorpo_reward_gap", "tailorpo_loss", "tailorpo_samples_total"} <= set(figures)
    for pod in (leader, other):
        check = "id -u; ls -d /var/run/secrets 2>/dev/null || echo nothing"
        assert kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", check) == "65532\nnothing\n"
    with pytest.raises(OSError, match=r"reset|refused|closed"):  # only the first worker serves metrics
        scraped(environment, other)

    environment.gate.open(job.name, 1)
    kubectl("wait", "--for=condition=Succeeded", f"tpj/{job.name}", f"--timeout={TIMEOUT_SECONDS:.0f}s")
    status = job.status
    assert status["message"] == f"done: {ITERATIONS}/{ITERATIONS} iterations"
    assert (status["restarts"], status["failures"]) == (0, 0)
    assert [reason for reason, _ in job.events()] == ["AttemptStarted", "Running", "Succeeded"]
    environment.result(job)
    assert environment.objects("undisturbed/attempt-0001/output/report.html")
    output = kubectl("logs", f"--selector={naming.JOB}={job.name}", "--prefix", "--tail=-1")
    assert f"iteration {ITERATIONS}/{ITERATIONS}" in output
    until(lambda: counted(environment, "tailorpo_operator_jobs", "Succeeded"), "the operator counts the job")
    assert counted(environment, "tailorpo_operator_attempts_total", "Completed")


def test_no_secret_is_told(environment: Environment, undisturbed: Followed, expected: dict[str, str]) -> None:
    """Nor written: to statuses, events, logs, the results."""
    shown = environment.kubectl("get", "tpj,jobs,pods,services,events", "--output=yaml")
    shown += environment.kubectl("logs", f"--selector={naming.JOB}", "--tail=-1")
    shown += environment.operator.log.read_text()
    kept = b"".join(environment.objects("").values())
    for value in (environment.server.access_key, environment.server.secret_key):
        assert value not in shown
        assert value.encode() not in kept
    assert SECRET in shown


def test_too_little_memory_then_a_killed_worker(environment: Environment, expected: dict[str, str]) -> None:
    little = {"limits": {"memory": "200Mi"}, "requests": {"cpu": "100m"}}
    job = environment.start(environment.document("clumsy", resources=little), hold=range(2, 6))
    end = job.ended(1)
    assert (end["reason"], end["exitCode"], end["counted"]) == ("OOMKilled", 137, True)
    assert "its limit of 200Mi" in end["message"]
    patch(job, {"template": {"resources": {"limits": None}}})
    number = until(lambda: trained(job), "an attempt trains", TIMEOUT_SECONDS, INTERVAL)
    early = job.status["attempts"][:-1]
    assert len(early) <= 2  # the second may have begun just before the edit
    assert all(each["reason"] in ("OOMKilled", "SpecChanged") for each in early)

    kept = trains(job, number)["checkpoint"]
    kill = "kill -9 $(cat /proc/1/task/1/children)"
    job.kubectl("exec", pods(job, number)[1]["metadata"]["name"], "--", "sh", "-c", kill)
    environment.gate.open(job.name, number)
    end = job.ended(number)
    assert (end["reason"], end["exitCode"], end["counted"], end["rank"]) == ("Killed", 137, True, 1)
    assert end["stepTo"] >= kept["step"]

    environment.gate.open(job.name, number + 1)
    assert environment.result(job) == expected
    assert job.status["resumedFrom"]["step"] >= kept["step"]
    failures = 1 + sum(each["counted"] for each in early)
    assert (job.status["restarts"], job.status["failures"]) == (number, failures)
    story = [reason for reason, _ in job.events()]
    begun = ["AttemptStarted", "Running"]
    assert [reason for reason in story if reason not in begun] == [
        *(each["reason"] for each in early),
        "Killed",
        "Succeeded",
    ]


def test_a_power_cut_then_a_drain(environment: Environment, expected: dict[str, str], mortal_node: Node) -> None:
    """Neither counts: the job may not fail even once."""
    document = environment.document("moved")
    document["spec"]["runPolicy"] = {"backoffLimit": 0, "terminationGracePeriodSeconds": 5}
    job = environment.start(document, hold=[1, 2])
    kept = trains(job, 1)["checkpoint"]
    patch(job, {"runPolicy": {"terminationGracePeriodSeconds": 60}})  # for workers that can stop in time
    mortal_node.power_off()
    environment.gate.open(job.name, 1)
    end = job.ended(1)
    assert (end["reason"], end["counted"], end["node"]) == ("NodeLost", False, mortal_node.name)

    again = trains(job, 2)
    assert again["resumedFrom"]["step"] >= kept["step"]
    (node,) = {pod["spec"]["nodeName"] for pod in pods(job, 2)}
    assert node != mortal_node.name
    mortal_node.power_on()
    try:
        only, timeout = f"--pod-selector={naming.JOB}={job.name}", f"--timeout={TIMEOUT_SECONDS:.0f}s"
        with job.kubectl.popen("drain", node, only, "--delete-emptydir-data", timeout) as drain:
            told_to_stop(job, 2)
            environment.gate.open(job.name, 2)
            assert drain.wait(TIMEOUT_SECONDS) == 0
        end = job.ended(2)
        assert (end["reason"], end["exitCode"], end["counted"], end["node"]) == ("Drained", 75, False, node)
        assert end["stepTo"] >= again["checkpoint"]["step"]
        assert job.status["checkpoint"]["step"] == end["stepTo"]  # saved before the end
        assert environment.result(job) == expected
        assert job.status["resumedFrom"]["step"] == end["stepTo"]
        assert {pod["spec"]["nodeName"] for pod in pods(job, 3)} == {mortal_node.name}
    finally:
        job.kubectl("uncordon", node)
    assert (job.status["restarts"], job.status["failures"]) == (2, 0)


def test_suspended_then_deleted_and_applied_again(environment: Environment, expected: dict[str, str]) -> None:
    document = environment.document("again")
    job = environment.start(document, hold=[1, 2])
    kept = trains(job, 1)["checkpoint"]
    patch(job, {"runPolicy": {"suspend": True}})
    told_to_stop(job, 1)
    environment.gate.open(job.name, 1)
    status = job.phase("Suspended")
    assert status["checkpoint"]["step"] == status["progress"]["step"] >= kept["step"]
    until(lambda: not pods(job, 1), "its pods are gone")
    patch(job, {"runPolicy": {"suspend": False}})

    kept = trains(job, 2)["checkpoint"]
    job.kubectl("delete", "tpj", job.name)
    job = environment.start(document, hold=[])  # at once, while the pods of the one before it are still there
    assert pods(job, 2)
    environment.gate.open(job.name, 2)
    assert environment.result(job) == expected
    status = job.status
    assert status["resumedFrom"]["step"] >= kept["step"]
    assert [each["number"] for each in status["attempts"]] == [1]
