"""What the operator shows: progress, metrics, health, logs; and the secrets that it must not show."""

import base64
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tailorpo_operator.api import naming
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.progress import Metrics, Progress, Rates
from tailorpo_trainer.telemetry import termination
from tailorpo_trainer.telemetry.server import Health, serving
from tailorpo_trainer.telemetry.termination import TerminationReporter
from tests.cluster.api import Cluster, Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import OperatorProcess, WarmOperator, Watched, job, last_words, progress


@contextmanager
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, TerminationReporter]]:
    """The trainer's own server, at an address that a pod may have, and the reporter whose progress it serves."""
    monkeypatch.setenv(termination.VARIABLE, "")
    address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}"
    reporter = TerminationReporter(Progress())
    with serving(address, naming.METRICS_PORT, CollectorRegistry(), Health(reporter, 60)):
        yield address, reporter


def run(watched: Watched, address: str) -> None:
    """The first worker runs at an address where it can be asked."""
    for number, pod in enumerate(watched.pods(1)):
        watched.driver.run(pod, address if number == 0 else None)


def test_progress_comes_into_the_status(
    kubectl: Kubectl,
    pod_driver: PodDriver,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = (f"--watch-namespace={kubectl.namespace}", "--status-seconds=0.2")
    with trainer(monkeypatch) as (address, reporter), WarmOperator(alone, tmp_path / "log", *quick):
        watched = Watched(kubectl, pod_driver, job())
        reported = progress(12, eta_seconds=4320.0, rates=Rates(images_per_second=3.5))
        reporter.report(reported.replace(metrics=Metrics(reward=92.7, gap=1.25, loss=0.69)))
        run(watched, address)
        status = until(lambda: watched.status.get("progress") and watched.status, "the progress is told")
        assert status["progress"]["steps"] == "12/100"
        assert status["progress"]["percent"] == 12
        assert status["progress"]["eta"] == "1h12m"
        assert status["metrics"] == {"reward": 92.7, "gap": 1.25, "loss": 0.69}
        assert status["checkpoint"]["step"] == 12
        row = kubectl("get", "tpj").splitlines()[1].split()
        assert row[:7] == ["animals", "Running", "12/100", "92.7", "1.25", "1h12m", "0"]
        reporter.report(progress(13))
        until(lambda: watched.status["progress"]["step"] == 13, "the next step is told")


def test_progress_is_written_now_and_then(
    kubectl: Kubectl,
    pod_driver: PodDriver,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trainer that does a step a tenth of a second does not make ten writes a second."""
    with trainer(monkeypatch) as (address, reporter), WarmOperator(alone, tmp_path / "log", "--status-seconds=3600"):
        watched = Watched(kubectl, pod_driver, job())
        run(watched, address)
        watched.phase("Running")
        version, over, step = watched.get()["metadata"]["resourceVersion"], threading.Event(), 0

        def tell() -> None:
            nonlocal step
            while not over.wait(0.05):
                step += 1
                reporter.report(progress(step, checkpoint=None))

        thread = threading.Thread(target=tell)
        thread.start()
        until(lambda: step > 60, "the trainer has done some steps")
        over.set()
        thread.join()
        assert watched.get()["metadata"]["resourceVersion"] == version
        pod_driver.end(watched.pods(1)[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE, step=60))
        assert watched.ended(1)["stepTo"] == 60  # the end of an attempt is written at once


def test_a_stalled_trainer_that_answers_is_stopped(
    kubectl: Kubectl,
    pod_driver: PodDriver,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (f"--watch-namespace={kubectl.namespace}", "--status-seconds=0.2")
    with trainer(monkeypatch) as (address, reporter), WarmOperator(alone, tmp_path / "log", *arguments):
        watched = Watched(kubectl, pod_driver, job(runPolicy={"stallTimeoutSeconds": 1}))
        reporter.report(progress(7))
        run(watched, address)
        end = watched.ended(1)
        assert (end["reason"], end["counted"], end["stepTo"]) == ("NoProgress", True, 7)


def test_a_trainer_out_of_reach_is_no_failure(
    kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with WarmOperator(alone, log, f"--watch-namespace={kubectl.namespace}", "--verbose"):
        watched = Watched(kubectl, pod_driver, job(runPolicy={"stallTimeoutSeconds": 1}))
        watched.run(1)
        until(lambda: "no progress of" in log.read_text(), "it was asked in vain")
        assert watched.status["phase"] == "Running"
        watched.finish(1)


def test_only_the_namespaces_that_it_is_told(
    cluster: Cluster, kubectl: Kubectl, pod_driver: PodDriver, alone: Path, tmp_path: Path
) -> None:
    other = f"{kubectl.namespace}-other"
    kubectl("create", "namespace", other)
    try:
        with WarmOperator(alone, tmp_path / "log", f"--watch-namespace={other}"):
            kubectl.apply(job("here"))
            there = Watched(cluster.kubectl(other), pod_driver, job("there"))
            there.run(1)
            assert "status" not in kubectl.json("get", "tpj", "here")
    finally:
        kubectl("delete", "namespace", other, "--wait=false")


def figures(text: str) -> dict[tuple[str, ...], float]:
    """Samples of a scrape, by name and the values of its labels, in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_its_own_metrics_and_health(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    assert operator.ask("/healthz") == (200, "ok\n")
    until(lambda: operator.ask("/readyz") == (200, "ok\n"), "it is ready")
    watched = Watched(kubectl, pod_driver, job(template={"resources": {"limits": {"nvidia.com/gpu": 64}}}))
    watched.phase("Pending")
    pending = ("tailorpo_job_pending_seconds", "animals", kubectl.namespace)
    until(lambda: pending in figures(operator.ask("/metrics")[1]), "how long it waits is told")
    kubectl("delete", "tpj", "animals")
    until(lambda: pending not in figures(operator.ask("/metrics")[1]), "it does not wait any more")
    watched = Watched(kubectl, pod_driver, job("birds"))
    watched.run(1)
    until(lambda: figures(operator.ask("/metrics")[1])[("tailorpo_operator_jobs", "Running")] >= 1, "one is running")
    ended = ("tailorpo_operator_attempts_total", "Unavailable")
    before = figures(operator.ask("/metrics")[1])[ended]  # also if none has ended: from 0 on an increase is seen
    pod_driver.end(watched.pods(1)[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
    until(lambda: figures(operator.ask("/metrics")[1])[ended] == before + 1, "that it has ended is counted")
    watched.run(2)
    birds = ("birds", kubectl.namespace)
    waited = ("tailorpo_job_pending_duration_seconds_count", kubectl.namespace)
    until(lambda: figures(operator.ask("/metrics")[1])[waited] == 2, "it runs again")
    text = operator.ask("/metrics")[1]
    found = figures(text)
    assert found[("tailorpo_job_status", *birds, "Running")] == 1
    assert found[("tailorpo_job_step", *birds)] == found[("tailorpo_job_checkpoint_step", *birds)] == 40
    assert found[("tailorpo_job_info", *birds, "tailorpo", "tiny-animals", "", "colourfulness", "2")] == 1
    assert found[("tailorpo_job_gpu_seconds_total", *birds)] == 0
    assert found[("tailorpo_job_attempts", *birds)] == 2
    assert found[("tailorpo_job_running_duration_seconds_count", kubectl.namespace)] == 1
    assert found[("tailorpo_job_restart_lost_steps_sum", kubectl.namespace)] == 0
    assert found[("tailorpo_operator_api_requests_total", "201", "create")] >= 4
    assert found[("tailorpo_operator_reconcile_seconds_count",)] > 0
    assert watched.get()["metadata"]["uid"] not in text
    kubectl("delete", "tpj", "birds")
    ours = {("birds", kubectl.namespace)}
    until(lambda: not {key[1:3] for key in figures(operator.ask("/metrics")[1])} & ours, "its series end with the job")


def test_its_log_has_job_and_attempt(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.run(1)
    name = f"{kubectl.namespace}/animals"
    lines = until(lambda: [line for line in operator.logged() if line.get("job") == name], "it logs of the job")
    assert {line["level"] for line in lines} == {"info"}
    assert lines[-1]["attempt"] == 1
    assert lines[-1]["message"].startswith("Running: ")


def test_a_graceful_stop(alone: Path, tmp_path: Path) -> None:
    operator = OperatorProcess(alone, tmp_path / "log").start()
    until(lambda: operator.ask("/readyz")[0] == 200, "it is ready")
    assert operator.stop() == 0
    assert operator.logged()[-1]["message"] == "stopped"


def test_no_secret_comes_to_light(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    """Pods are given Secrets by name; what a trainer says is cleared of them by itself, which its own tests show."""
    secret = "correct-horse-battery-staple"
    data = {"AWS_SECRET_ACCESS_KEY": base64.b64encode(secret.encode()).decode()}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "data": data})
    storage: dict[str, Any] = {"storage": "s3://models/animals", "secretName": "s3"}
    watched = Watched(kubectl, pod_driver, job(checkpoint=storage, template={"hubToken": {"name": "s3", "key": "t"}}))
    pods = watched.run(1)
    pod_driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE))
    watched.run(2)
    watched.finish(2)
    kinds = "tpj,jobs,pods,services,events"
    for text in (json.dumps(kubectl.json("get", kinds)), operator.log.read_text(), operator.ask("/metrics")[1]):
        assert secret not in text
        assert data["AWS_SECRET_ACCESS_KEY"] not in text
    pod = pods[0]
    assert pod.spec.automount_service_account_token is False
    assert not any("token" in (mount.mount_path or "") for mount in pod.spec.containers[0].volume_mounts)
