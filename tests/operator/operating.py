"""The operator as a process of its own, and jobs for it."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from kubernetes.client import V1Pod

from tailorpo_operator.api import naming
from tailorpo_trainer.errors import ExitCode
from tailorpo_trainer.spec.progress import Checkpoint, Error, Progress
from tailorpo_trainer.telemetry import termination
from tests.cluster.api import Kubectl
from tests.cluster.pods import PodDriver
from tests.cluster.real.network import Network
from tests.cluster.waiting import INTERVAL, TIMEOUT_SECONDS, until

Fields = dict[str, Any]

QUICK = ("--retry-seconds=0.3", "--retry-seconds-max=2", "--lost-seconds=2", "--progress-seconds=0.5")
"""Short delays, so that no test takes minutes."""


GRACE = 30.0
"""Seconds that a kubelet gives a pod to end."""


class Serving:
    """The HTTP server of an operator; its log names the port."""

    log: Path
    starts: int

    @property
    def port(self) -> int:
        """The port since its last start."""

        def check() -> int | None:
            found = re.findall(r'on port (\d+)"', self.log.read_text() if self.log.exists() else "")
            return int(found[self.starts - 1]) if len(found) >= self.starts else None

        return until(check, "the operator serves its metrics")

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of the answer."""
        try:
            with urlopen(f"http://{self._address()}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _address(self) -> str:
        return f"127.0.0.1:{self.port}"


class OperatorProcess(Serving):
    """`tailorpo operator`, which can be killed and started again."""

    def __init__(self, kubeconfig: Path, log: Path, *arguments: str, network: Network | None = None) -> None:
        """network: of real nodes; the operator then runs in it and reaches their pods."""
        self.log = log
        self._arguments = [f"--kubeconfig={kubeconfig}", "--host=127.0.0.1", "--port=0", *QUICK, *arguments]
        self._network = network
        self._process: subprocess.Popen[Any] | None = None
        self.starts = 0

    def start(self) -> "OperatorProcess":
        self.starts += 1
        command = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*(self._network.enter if self._network else ()), *command, "operator", *self._arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"NO_PROXY": "127.0.0.1,localhost"},
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def logged(self) -> list[Fields]:
        """The lines of its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def _address(self) -> str:
        return self._network.reach("127.0.0.1", self.port) if self._network else super()._address()

    def kill(self) -> None:
        """Kills it, as a power failure would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Stops it as a kubelet would; returns its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def __enter__(self) -> "OperatorProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class WarmOperator(Serving):
    """The same, forked from a process that has imported everything, so that it starts at once; it can be killed too."""

    def __init__(self, kubeconfig: Path, log: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> None:
        """prepare: called first in the new process."""
        self._prepare = prepare
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["tailorpo_operator.controller.manager", "tailorpo_operator.cli", __name__]
        )
        self._arguments = [f"--kubeconfig={kubeconfig}", "--host=127.0.0.1", "--port=0", *QUICK, *arguments]
        self.log = log
        self._process: Any = None
        self._dying = False
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        self._dying = False
        self._process = self._context.Process(target=_operate, args=(self._arguments, str(self.log), self._prepare))
        self._process.start()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def kill_soon(self, pid: int) -> None:
        """Kills it from any thread, if it still has this pid; `running` then waits for its end."""
        if self.pid == pid:
            self._dying = True
            os.kill(pid, signal.SIGKILL)

    @property
    def running(self) -> bool:
        if self._dying:
            self._process.join()
        return self._process is not None and bool(self._process.is_alive())

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int | None:
        """Stops it as a kubelet would; returns its exit status, or None if it does not end in time."""
        self._process.terminate()
        self._process.join(GRACE)
        code: int | None = self._process.exitcode
        return code

    def logged(self) -> list[str]:
        """The messages of its log."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line)["message"] for line in lines if line.startswith("{")]

    def __enter__(self) -> "WarmOperator":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _operate(arguments: list[str], log: str, prepare: Callable[[], None] | None) -> None:
    from tailorpo_trainer.cli import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    if prepare is not None:
        prepare()
    sys.exit(main(["operator", *arguments]))


def job(name: str = "animals", **spec: Any) -> Fields:
    """A job of 100 iterations on two workers."""
    return {
        "apiVersion": "tailorpo.dev/v1alpha1",
        "kind": "TailorPOJob",
        "metadata": {"name": name},
        "spec": {
            "prompts": {"builtin": "animals"},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo"},
            "training": {"iterations": 100},
            "checkpoint": {"storage": f"s3://models/{name}"},
            "workers": 2,
            **spec,
        },
    }


def progress(step: int, **fields: Any) -> Progress:
    """A trainer's progress at this step."""
    kept = Checkpoint(uri=f"s3://models/animals/step-{step:08d}", step=step, time="2026-01-01T00:00:00Z")
    return Progress(
        **{"attempt": 1, "phase": "Running", "step": step, "of": 100, "percent": step, "checkpoint": kept, **fields}
    )


def last_words(code: int, text: str = "", step: int = 40, **fields: Any) -> str:
    """The termination message of a trainer that ends with this exit code."""
    made = progress(step, **fields)
    if code:
        made = made.ended_by(Error(class_="AnyError", text=text or f"what exit code {code} means", exit_code=code))
    else:
        made = made.replace(phase="Succeeded", adapter="s3://models/animals/adapter")
    return termination.encode(made).decode()


class Followed:
    """A job in a test's namespace, read by kubectl."""

    def __init__(
        self,
        kubectl: Kubectl,
        document: Mapping[str, Any],
        timeout: float = TIMEOUT_SECONDS,
        interval: float = INTERVAL,
    ) -> None:
        self.kubectl, self.timeout, self.interval = kubectl, timeout, interval
        self.name: str = document["metadata"]["name"]
        self.workers: int = document["spec"].get("workers", 1)
        kubectl.apply(document)

    def get(self) -> Fields:
        found: Fields = self.kubectl.json("get", "tpj", self.name)
        return found

    @property
    def status(self) -> Fields:
        found: Fields = self.get().get("status", {})
        return found

    def attempt(self, number: int) -> Fields:
        """An attempt in the status; raises AssertionError if there is none yet, after which `until` retries."""
        found = [each for each in self.status.get("attempts", []) if each["number"] == number]
        assert found, f"no attempt {number} yet"
        return dict(found[0])

    def phase(self, phase: str) -> Fields:
        """Waits for the phase; returns the status."""

        def check() -> Fields | None:
            status = self.status
            assert status.get("phase") == phase, status
            return status

        return until(check, f"{self.name} is {phase}", self.timeout, self.interval)

    def condition(self, kind: str) -> Fields:
        found = [each for each in self.status.get("conditions", []) if each["type"] == kind]
        assert found, f"no condition {kind} yet"
        return dict(found[0])

    def ended(self, attempt: int) -> Fields:
        """Waits until an attempt's end is in the status."""

        def check() -> Fields | None:
            found = self.attempt(attempt)
            assert "end" in found, found
            return found

        return until(check, f"attempt {attempt} of {self.name} was judged", self.timeout, self.interval)

    def events(self) -> list[tuple[str, str]]:
        """Reasons and texts of its events, oldest first."""
        selector = f"involvedObject.kind=TailorPOJob,involvedObject.name={self.name}"
        items = self.kubectl.json("get", "events", f"--field-selector={selector}")["items"]
        return [(each["reason"], each["message"]) for each in sorted(items, key=lambda each: each["eventTime"])]

    def attempt_jobs(self) -> list[Fields]:
        """Its batch/v1 Jobs."""
        return list(self.kubectl.json("get", "jobs", f"--selector={naming.JOB}={self.name}")["items"])


def _on(selector: Mapping[str, str], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The job, restricted to nodes with these labels."""
    if not selector:
        return document
    spec = document["spec"]
    template = spec.get("template", {})
    wanted = {**template.get("nodeSelector", {}), **selector}
    return {**document, "spec": {**spec, "template": {**template, "nodeSelector": wanted}}}


class Watched(Followed):
    """A job whose pods are simulated by the test."""

    def __init__(self, kubectl: Kubectl, driver: PodDriver, document: Mapping[str, Any]) -> None:
        super().__init__(kubectl, _on(driver.selector, document))
        self.driver = driver

    def pods(self, attempt: int, count: int | None = None) -> list[V1Pod]:
        """Waits until the pods of an attempt have nodes; by index."""
        selector = f"{naming.JOB}={self.name},{naming.ATTEMPT}={attempt}"
        return self.driver.scheduled(self.kubectl.namespace, self.workers if count is None else count, selector)

    def run(self, attempt: int) -> list[V1Pod]:
        """The same, and makes them run; waits until the status shows it."""
        pods = self.pods(attempt)
        for pod in pods:
            self.driver.run(pod)

        def running() -> bool:
            assert self.condition("Running")["status"] == "True", self.status
            return bool(self.attempt(attempt))

        until(running, f"attempt {attempt} of {self.name} runs")
        return pods

    def finish(self, attempt: int, step: int = 100) -> Fields:
        """All pods of an attempt succeed."""
        for pod in self.pods(attempt):
            self.driver.end(pod, ExitCode.DONE, last_words(0, step=step))
        return self.phase("Succeeded")
