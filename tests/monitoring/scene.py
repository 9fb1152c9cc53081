"""A real training of two processes and a real operator with jobs of all kinds, scraped by a real Prometheus."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kubernetes import client

from tailorpo_operator.api import naming
from tailorpo_trainer.errors import ExitCode
from tests.cluster.api import Cluster
from tests.cluster.pods import PodDriver
from tests.cluster.prometheus import Prometheus, Target, prometheus
from tests.cluster.waiting import until
from tests.conftest import S3Server, Weed
from tests.faults import Fault, Proxy, always
from tests.monitoring import short_rules
from tests.operator.operating import OperatorProcess, Watched, job, last_words

PLUGIN = Path(__file__).parent / "plugin"
NAMESPACE, BUCKET = "research", "models"
FACTOR = 180
"""How much shorter the times of the rules are than in the chart."""
THRESHOLDS = {"TailorPOJobPending": 10.0, "TailorPOJobRestarting": 1.0, "TailorPOCheckpointFailing": 0.1}
UNSURE = frozenset({"TailorPOSlow", "TailorPOSlowReward", "TailorPOGradientNorm"})
"""Alerts that depend on how busy this machine is, or on random weights; `cases.py` covers them."""
PATIENCE = 240.0  # seconds; a busy machine needs long to import torch twice
PASSING = "TailorPOJobRestarting"
"""It fires while the scene is set, and is over some time after."""
GPU = {"template": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}


class Training:
    """`tailorpo run` with two processes, whose reward does what `script` says."""

    def __init__(
        self, folder: Path, document: Callable[[Path], dict[str, Any]], server: S3Server, storage: Proxy
    ) -> None:
        """document: the job, for a file with the script. Its checkpoints go to the server by way of `storage`."""
        self.folder, self.address = folder, f"127.{os.getpid() % 250 + 1}.9.4"
        self._script = folder / "script.json"
        self.script()
        self._last_words = folder / "termination-log"
        self._document = folder / "job.json"
        self._storage = storage
        self._environment = server.environment | {"AWS_ENDPOINT_URL": storage.endpoint, "AWS_REGION": "us-east-1"}
        made = document(self._script)
        made["spec"]["checkpoint"]["storage"] = f"s3://{BUCKET}/{made['metadata']['name']}"
        self.name: str = made["metadata"]["name"]
        self._document.write_text(json.dumps(made))
        self._process: subprocess.Popen[bytes] | None = None

    def script(self, **values: object) -> None:
        """Replaces what the reward does from its next call on."""
        new = self._script.with_suffix(".new")
        new.write_text(json.dumps(values))
        new.replace(self._script)

    def start(self) -> None:
        command = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())", "run"]
        options = ["--processes=2", "--quiet"]
        options += [f"--metrics-host={self.address}", f"--metrics-port={naming.METRICS_PORT}"]
        path = os.pathsep.join([str(PLUGIN), *filter(None, sys.path)])
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self._document), *options],
                cwd=self.folder,
                env=os.environ
                | self._environment
                | {"PYTHONPATH": path, "TAILORPO_TERMINATION_LOG": str(self._last_words)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @contextmanager
    def without_storage(self) -> Iterator[None]:
        """Inside, the storage answers every write with 503."""
        self._storage.rule = always(Fault(503, "SlowDown"), method="PUT")
        try:
            yield
        finally:
            self._storage.rule = lambda *_: None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def last_words(self) -> str:
        return self._last_words.read_text()

    def end(self) -> int:
        """Waits for its end; returns its exit code."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Scene:
    """Everything that is watched. cats: the job that the training belongs to."""

    def __init__(self, training: Training, operator: OperatorProcess, server: Prometheus, cats: Watched) -> None:
        self.training, self.operator, self.prometheus, self.cats = training, operator, server, cats
        self.api = server.api

    def firing(self) -> set[tuple[str, str, str]]:
        """Alerts that fire: the cluster, the alert, the job (or nothing); without the passing one."""
        return {
            (labels.get("cluster", ""), labels["alertname"], labels.get("job_name", ""))
            for alert in self.api.alerts()
            if alert["state"] == "firing" and alert["labels"]["alertname"] != PASSING
            for labels in [alert["labels"]]
        }

    def has_fired(self, alert: str, job_name: str) -> bool:
        """Whether it has ever fired, for both ways to scrape."""
        labels = f'alertname="{alert}",alertstate="firing",job_name="{job_name}"'
        return len(self.api.instant(f"last_over_time(ALERTS{{{labels}}}[1h])")) == 2

    def until_firing(self, *expected: tuple[str, str]) -> None:
        """Waits until exactly these alerts fire, for both ways to scrape."""
        wanted = {(cluster, *each) for cluster in ("", "strict") for each in expected}

        def look() -> bool:
            firing = self.firing()
            assert firing == wanted, sorted(firing ^ wanted)
            return True

        until(look, f"{expected} fire", PATIENCE)


def scripted_job(pipeline: Path, script: Path) -> dict[str, Any]:
    """A job on a tiny pipeline that gives all metrics, and whose reward follows a script."""
    parameters = {"file": str(script)}
    return {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": "cats", "namespace": NAMESPACE},
        "spec": {
            "model": {"name": str(pipeline)},
            "lora": {"rank": 2, "alpha": 2},
            "prompts": {"list": ["a cat", "a dog", "a bee"]},
            "rewards": [{"name": "scripted", "parameters": parameters}],
            "method": {"name": "spo", "clampRatio": 0.1, "threshold": 0},
            "sampling": {"steps": 4, "trainedSteps": {"count": 2}, "guidanceScale": 3.0},
            "optimizer": {"learningRate": 1e-4},
            "training": {"iterations": 100_000, "promptsPerIteration": 4},
            "evaluation": {
                "everyIterations": 2,
                "images": 4,
                "rewards": [{"name": "opposed", "parameters": parameters}, {"name": "clip-score"}],
            },
            "checkpoint": {"everyIterations": 2, "keep": 2, "maxFailures": 100},
        },
    }


def twice(address: str, **labels: str) -> list[Target]:
    """Scraped with honor_labels, and without by a Prometheus that tells clusters apart."""
    return [Target(address, labels), Target(address, {**labels, "cluster": "strict"}, honor_labels=False)]


@contextmanager
def scene(
    cluster: Cluster, operator_user: Path, document: Callable[[Path], dict[str, Any]], folder: Path
) -> Iterator[Scene]:
    """Starts everything: one training that runs, one job that waits, one that failed, one that restarts."""
    (folder / "seaweedfs").mkdir()
    weed = Weed(folder / "seaweedfs")
    with ExitStack() as stack:
        stack.callback(weed.kill)
        weed.start()
        weed.server.make_bucket(BUCKET)
        training = Training(folder, document, weed.server, stack.enter_context(Proxy(weed.server.endpoint)))
        stack.callback(training.kill)
        training.start()
        api = stack.enter_context(cluster.api())
        client.CoreV1Api(api).create_namespace({"metadata": {"name": NAMESPACE}})
        driver = stack.enter_context(PodDriver(api))
        for number in range(2):
            driver.add_node(f"node-{number}")
        arguments = ("--status-seconds=0.3", "--resync-seconds=5")
        operator = OperatorProcess(operator_user, folder / "operator.log", *arguments)
        stack.enter_context(operator)
        operator_labels = {"namespace": "tailorpo-system", "pod": "tailorpo-operator-0"}
        targets = [
            *twice(f"127.0.0.1:{operator.port}", **operator_labels),
            *twice(f"{training.address}:{naming.METRICS_PORT}", namespace=NAMESPACE, pod=f"{training.name}-0001-0"),
        ]
        rules = short_rules.write(folder, FACTOR, THRESHOLDS, UNSURE)
        server = stack.enter_context(prometheus(folder / "prometheus.log", targets, rules))
        kubectl = cluster.kubectl(NAMESPACE)
        cats = Watched(kubectl, driver, job(training.name, **GPU))
        run(cats, 1, training.address)
        Watched(kubectl, driver, job("waiting", template={"resources": {"limits": {"nvidia.com/gpu": 64}}}))
        unlucky = Watched(kubectl, driver, job("unlucky", **GPU))
        for attempt in range(1, 5):
            pods = unlucky.run(attempt)
            if attempt < 4:
                driver.end(pods[0], ExitCode.UNAVAILABLE, last_words(ExitCode.UNAVAILABLE, step=40 + attempt))
        broken = Watched(kubectl, driver, job("broken", **GPU))
        driver.end(broken.run(1)[0], ExitCode.CONFIGURATION, last_words(ExitCode.CONFIGURATION))
        broken.phase("Failed")
        yield Scene(training, operator, server, cats)


def run(watched: Watched, attempt: int, address: str) -> None:
    """The job's pods run, the first at the address where it can be asked."""
    for number, pod in enumerate(watched.pods(attempt)):
        watched.driver.run(pod, address if number == 0 else None)
