"""Runs the pods of TailorPO as processes of this machine: no container engine, no root."""

import base64
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import ProxyHandler, build_opener

from kubernetes import client
from kubernetes.client import ApiClient, V1Container, V1Pod

from tailorpo_operator.api import naming
from tailorpo_operator.children.pod_document import FILE, WORK
from tailorpo_trainer.spec.pod_template_rules import DOCUMENT_FOLDER
from tests.cluster.api import Cluster
from tests.cluster.control_plane import new_folder
from tests.cluster.pods import DONE, PodDriver
from tests.cluster.processes import Family

PROGRAM = [sys.executable, "-c", "import sys; from tailorpo_trainer.cli import main; sys.exit(main())"]
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables that a process gets from this one; everything else is what its pod says."""
MESSAGE_BYTES = 4096
STOP_SECONDS = 15.0
PROBE_SECONDS = 0.2


class ProcessDriver(PodDriver):
    """A `PodDriver` that starts what the pods ask for: the operator, and the workers of jobs.

    A process has its container's arguments, environment, Secrets, ConfigMaps, document and service account, and an
    address of its own on loopback, which is the pod's IP. It does not have the container's image, user, limits and
    file system: it is this environment's `tailorpo`. A pod is Running once its readiness probe, if any, succeeds.
    """

    def __init__(self, cluster: Cluster, api: ApiClient, logs: Path) -> None:
        """logs: the folder for the output of each process, `NAMESPACE-POD.log`."""
        super().__init__(api)
        self.logs = logs
        self._cluster = cluster
        self._family = Family(new_folder())
        self._addresses: dict[tuple[str, str], str] = {}
        self._numbers = itertools.count(1)
        self._processes: dict[str, _Process] = {}
        self._lock = threading.Lock()
        self._closing = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        with self._lock:
            processes = list(self._processes.values())
        for process in processes:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            process.wait(deadline - time.monotonic())
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._family.end()

    def running(self) -> list[V1Pod]:
        """The pods whose process runs."""
        with self._lock:
            return [each.pod for each in self._processes.values() if each.alive]

    def address(self, namespace: str, host: str) -> str:
        """The address of a pod, by its host name; also before it exists."""
        with self._lock:
            if (namespace, host) not in self._addresses:
                number = next(self._numbers)
                # A part of its own for each process that drives pods, so that two of them do not meet.
                self._addresses[namespace, host] = f"127.{os.getpid() % 250 + 2}.{number // 250}.{number % 250 + 1}"
            return self._addresses[namespace, host]

    def _attend(self, pod: V1Pod) -> None:
        if self._closing:
            return
        process = self._processes.get(pod.metadata.uid)
        if process is not None and process.alive:
            if pod.metadata.deletion_timestamp is not None:
                process.stop(float(pod.metadata.deletion_grace_period_seconds or 0))
        elif (
            process is None
            and pod.metadata.deletion_timestamp is None
            and pod.status.phase == "Pending"
            and self.alive(pod.spec.node_name)
        ):
            self._start(pod)
        elif process is None or pod.status.phase in DONE:
            super()._attend(pod)

    def _start(self, pod: V1Pod) -> None:
        name, namespace = pod.metadata.name, pod.metadata.namespace
        folder = self._family.folder / f"{namespace}-{name}"
        address = self.address(namespace, pod.spec.hostname or name)
        [container] = pod.spec.containers
        inside = _Inside(self._core, pod, container, folder, address)
        inside.write_files()
        environment = inside.environment()
        if pod.spec.automount_service_account_token:
            account = self._cluster.service_account(namespace, pod.spec.service_account_name)
            environment["KUBECONFIG"] = str(account)
        arguments = [self._own_address(namespace, each) for each in inside.arguments(environment)]
        if arguments[:1] == ["operator"]:
            arguments.append(f"--host={address}")
        with (self.logs / f"{namespace}-{name}.log").open("ab") as log:
            popen = subprocess.Popen(
                [*PROGRAM, *arguments],
                cwd=inside.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._family.born(popen.pid)
        process = _Process(pod, popen)
        with self._lock:
            self._processes[pod.metadata.uid] = process
        thread = threading.Thread(target=self._follow_process, args=(process, container, inside), daemon=True)
        thread.name = f"process of {name}"
        thread.start()

    def _own_address(self, namespace: str, argument: str) -> str:
        """Names of pods are addresses here: no DNS server knows them."""
        name, _, host = argument.partition("=")
        return f"{name}={self.address(namespace, host.split('.')[0])}" if name == "--master-addr" else argument

    def _follow_process(self, process: "_Process", container: V1Container, inside: "_Inside") -> None:
        while process.alive and not _is_ready(container, inside.address):
            time.sleep(PROBE_SECONDS)
        if process.alive and not self._closing:
            self.run(process.pod, inside.address)
        code = process.popen.wait()
        self._family.buried(process.popen.pid)
        process.kill()  # what it may have left in its session
        process.alive = False
        if not self._closing:
            self.end(process.pod, 128 - code if code < 0 else code, inside.termination_message())


class _Process:
    """The process of a pod; `alive` until its end has been seen."""

    def __init__(self, pod: V1Pod, popen: "subprocess.Popen[bytes]") -> None:
        self.pod, self.popen, self.alive = pod, popen, True
        self._stopping = False

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def stop(self, grace: float) -> None:
        """SIGTERM now, and SIGKILL after the grace period."""
        if self._stopping and grace:
            return
        self._stopping = True
        self.signal(signal.SIGTERM)
        timer = threading.Timer(grace, self.kill)
        timer.daemon = True
        timer.start()

    def wait(self, seconds: float) -> None:
        try:
            self.popen.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            self.popen.wait()


class _Inside:
    """What a container finds: its files and variables, with folders of this machine in place of its own."""

    def __init__(self, core: client.CoreV1Api, pod: V1Pod, container: V1Container, folder: Path, address: str) -> None:
        self.work, self.address = folder / "work", address
        self._core, self._pod, self._container = core, pod, container
        self._documents, self._termination = folder / "document", folder / "termination-log"

    def write_files(self) -> None:
        for folder in (self.work, self._documents):
            folder.mkdir(parents=True)
        if text := (self._pod.metadata.annotations or {}).get(naming.DOCUMENT):
            (self._documents / FILE).write_text(self._here(text))
        for volume in self._pod.spec.volumes or ():
            for source in (volume.projected.sources if volume.projected else None) or ():
                if source.config_map:
                    data = self._core.read_namespaced_config_map(source.config_map.name, self._namespace).data or {}
                    for item in source.config_map.items:
                        path = self._documents / item.path
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(data[item.key])

    def environment(self) -> dict[str, str]:
        found = {name: os.environ[name] for name in KEPT if name in os.environ}
        found |= {"HOME": str(self.work), "OMP_NUM_THREADS": "1", "TAILORPO_TERMINATION_LOG": str(self._termination)}
        for source in self._container.env_from or ():
            if source.secret_ref:
                found |= self._secret(source.secret_ref.name)
            if source.config_map_ref:
                found |= self._core.read_namespaced_config_map(source.config_map_ref.name, self._namespace).data or {}
        for each in self._container.env or ():
            value = self._value(each.value_from) if each.value_from else each.value or ""
            found[each.name] = self._here(_expanded(value, found))
        if found["HOME"] == "/tmp":
            found["HOME"] = str(self.work)
        if "TAILORPO_METRICS_HOST" in found:
            found["TAILORPO_METRICS_HOST"] = self.address
        return found

    def arguments(self, environment: dict[str, str]) -> list[str]:
        return [self._here(_expanded(each, environment)) for each in self._container.args or ()]

    def termination_message(self) -> str:
        try:
            return self._termination.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def _namespace(self) -> str:
        return str(self._pod.metadata.namespace)

    def _here(self, text: str) -> str:
        return text.replace(DOCUMENT_FOLDER, str(self._documents)).replace(WORK, str(self.work))

    def _secret(self, name: str) -> dict[str, str]:
        data = self._core.read_namespaced_secret(name, self._namespace).data or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def _value(self, source: Any) -> str:
        if source.secret_key_ref:
            return self._secret(source.secret_key_ref.name)[source.secret_key_ref.key]
        if source.config_map_key_ref:
            read = self._core.read_namespaced_config_map(source.config_map_key_ref.name, self._namespace)
            return str(read.data[source.config_map_key_ref.key])
        path, metadata = source.field_ref.field_path, self._pod.metadata
        if found := re.fullmatch(r"metadata\.(annotations|labels)\['(.+)'\]", path):
            return str(getattr(metadata, found[1])[found[2]])
        fields = {"metadata.name": metadata.name, "metadata.namespace": self._namespace, "status.podIP": self.address}
        return str(fields[path])


def _expanded(text: str, environment: dict[str, str]) -> str:
    """With `$(NAME)` replaced, as a kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def _is_ready(container: V1Container, address: str) -> bool:
    """Whether the readiness probe succeeds; True if there is none."""
    probe = container.readiness_probe
    if probe is None:
        return True
    port = probe.http_get.port
    numbers = {each.name: each.container_port for each in container.ports or ()}
    url = f"http://{address}:{numbers.get(port, port)}{probe.http_get.path}"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


@contextmanager
def processes(cluster: Cluster, logs: Path, nodes: int = 2) -> Iterator[ProcessDriver]:
    """A driver with so many nodes, until the end of the `with`."""
    with cluster.api() as api, ProcessDriver(cluster, api, logs) as driver:
        for number in range(nodes):
            driver.add_node(f"node-{number}")
        yield driver
