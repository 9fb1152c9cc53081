"""Simulates the kubelets of Node objects: reports the status of their pods, and confirms their deletion."""

import contextlib
import itertools
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from kubernetes import client, watch
from kubernetes.client import ApiClient, V1Container, V1Pod
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.cluster.nodes import ALLOCATABLE, create_lease, create_node, drive_out, renew_lease, set_ready
from tests.cluster.waiting import until

SIGTERM_EXIT = 128 + 15
OOM_EXIT = 128 + 9
DONE = ("Succeeded", "Failed")
SCHEDULED = "spec.nodeName!="
RECONNECT_SECONDS = 0.2
RENEW_SECONDS = 5.0
LABEL = "tailorpo.dev/pod-driver"

Fields = dict[str, Any]

_addresses = itertools.count(1)


class PodDriver:
    """Reports for the pods of its nodes, as their kubelets would, from `with` to its end.

    In the background it confirms the deletion of pods whose node is alive: their containers exit with `sigterm_exit`
    and `last_words`, then the pod goes. With `run_all` it also makes every pod that gets to its nodes Running. The
    nodes' clock may be wrong by `skew`. At the end its nodes and what is on them vanish.
    """

    def __init__(
        self, api: ApiClient, *, run_all: bool = False, sigterm_exit: int = SIGTERM_EXIT, among_others: bool = False
    ) -> None:
        """among_others: in a cluster with other nodes, and silent nodes are tolerated for a time of its own.

        Pods then have to ask for `selector`, the label of this driver's nodes.
        """
        self.run_all = run_all
        self.selector = {LABEL: secrets.token_hex(4)} if among_others else {}
        self.sigterm_exit, self.last_words = sigterm_exit, ""
        self.skew = timedelta()
        self._api = api
        self._core = client.CoreV1Api(api)
        self._alive: dict[str, bool] = {}
        self._watch = watch.Watch()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pod driver", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="node leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if self.selector:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._heart.is_alive():
            self._heart.join()
        while self._thread.is_alive():
            self._watch.stop()
            self._thread.join(0.05)
        for node in self._alive:
            self._core.delete_node(node)  # first, so that no pod comes any more
            for pod in self._on(node):
                self._remove(pod)

    @property
    def nodes(self) -> list[str]:
        return list(self._alive)

    # Nodes

    def add_node(self, name: str, allocatable: Mapping[str, str] = ALLOCATABLE) -> str:
        """Makes a ready node that this driver plays; pods may go there at once."""
        create_node(self._api, name, allocatable, self.selector)
        if self.selector:
            create_lease(self._api, name)
        self._alive[name] = True
        until(lambda: not self._core.read_node(name).spec.taints, f"the taint of {name}, which was not ready, goes")
        return name

    def alive(self, node: str | None) -> bool:
        """Whether it is a node of this driver that has power."""
        return node is not None and self._alive.get(node, False)

    def lose(self, node: str) -> None:
        """A power failure: the node sends no heartbeat, and nothing is reported or confirmed for its pods."""
        self._alive[node] = False
        set_ready(self._api, node, "Unknown", "NodeStatusUnknown")
        self._drive_out(node, True)

    def not_ready(self, node: str) -> None:
        """The kubelet says that the node is not ready, and still reports for its pods."""
        set_ready(self._api, node, "False", "KubeletNotReady")
        self._drive_out(node, True)

    def recover(self, node: str) -> None:
        """The node is back: it confirms the deletions that hang, and takes pods again."""
        self._alive[node] = True
        set_ready(self._api, node, "True", "KubeletReady")
        self._drive_out(node, False)
        for pod in self._on(node):
            self._attend(pod)

    # Pods

    def scheduled(self, namespace: str, count: int, selector: str = "") -> list[V1Pod]:
        """Waits until there are exactly that many living pods and all are on this driver's nodes; in order of names."""

        def living() -> list[V1Pod]:
            pods = self._core.list_namespaced_pod(namespace, label_selector=selector).items
            living = [pod for pod in pods if pod.status.phase not in DONE and not pod.metadata.deletion_timestamp]
            nodes = [pod.spec.node_name for pod in living]
            assert len(nodes) == count, nodes
            assert all(node in self._alive for node in nodes), nodes
            return sorted(living, key=lambda pod: str(pod.metadata.name))

        return until(living, f"{count} pods of {namespace} are scheduled")

    def run(self, pod: V1Pod, address: str | None = None) -> None:
        """The pod's containers run and are ready. address: its IP, at which a test's server answers."""
        now, number = self._now(), next(_addresses)
        self._report(
            pod,
            phase="Running",
            startTime=now,
            podIP=address or f"10.128.{number // 250 % 256}.{number % 250 + 1}",
            conditions=_conditions(now, True),
            containerStatuses=[_container(each, {"running": {"startedAt": now}}) for each in pod.spec.containers],
        )

    def end(self, pod: V1Pod, exit_code: int = 0, message: str = "", reason: str = "") -> None:
        """The first container exits with this code and termination message, the others with 0.

        The phase follows: Succeeded where all exited with 0. `reason` is the container's: Completed or Error unless
        given.
        """
        first, now = pod.spec.containers[0].name, self._now()
        statuses = [
            _container(each, _terminated(now, exit_code, message, reason) if each.name == first else _terminated(now))
            for each in pod.spec.containers
        ]
        phase = "Failed" if exit_code else "Succeeded"
        self._report(pod, phase=phase, conditions=_conditions(now, False), containerStatuses=statuses)

    def oom(self, pod: V1Pod) -> None:
        """The first container exceeds its memory limit."""
        self.end(pod, OOM_EXIT, reason="OOMKilled")

    def refuse_image(self, pod: V1Pod, reason: str = "ImagePullBackOff", message: str = "not found") -> None:
        """The first container waits for an image that cannot be pulled."""
        self.wait(pod, reason, f"{pod.spec.containers[0].image}: {message}")

    def wait(self, pod: V1Pod, reason: str, message: str) -> None:
        """The first container cannot be created."""
        first, *others = pod.spec.containers
        waiting = {"waiting": {"reason": reason, "message": message}}
        creating = {"waiting": {"reason": "ContainerCreating"}}
        statuses = [_container(first, waiting), *(_container(each, creating) for each in others)]
        self._report(pod, phase="Pending", conditions=_conditions(self._now(), False), containerStatuses=statuses)

    def disrupt(self, pod: V1Pod, reason: str = "TerminationByKubelet", message: str = "") -> None:
        """Sets the condition DisruptionTarget: the pod will end for an external cause. Its end is a call of its own."""
        self._report(pod, conditions=[_condition(self._now(), "DisruptionTarget", True, reason, message)])

    def evict(self, pod: V1Pod, message: str = "The node was low on resource: memory.") -> None:
        """The kubelet ends the pod because its node runs short of something."""
        self.disrupt(pod, message=message)
        self.end(pod, OOM_EXIT)
        self._report(pod, reason="Evicted", message=message)

    # The background

    def _beat(self) -> None:
        while not self._stopping.wait(RENEW_SECONDS):
            for node in [name for name, alive in list(self._alive.items()) if alive]:
                with contextlib.suppress(ApiException, HTTPError):
                    renew_lease(self._api, node)

    def _drive_out(self, node: str, away: bool) -> None:
        if self.selector:
            drive_out(self._api, node, away)

    def _follow(self) -> None:
        """Watches the pods until the end of the driver, across restarts of the API server."""
        while not self._stopping.is_set():
            # From no version on: the first events are the pods that exist. The last line may be incomplete.
            with contextlib.suppress(ApiException, HTTPError, json.JSONDecodeError):
                for event in self._watch.stream(self._core.list_pod_for_all_namespaces, field_selector=SCHEDULED):
                    if self._stopping.is_set():
                        return
                    if event["type"] != "DELETED":
                        self._attend(event["object"])
            self._stopping.wait(RECONNECT_SECONDS)

    def _attend(self, pod: V1Pod) -> None:
        """One step towards the requested state of the pod; the next follows when the change is observed."""
        if not self.alive(pod.spec.node_name):
            return
        if pod.metadata.deletion_timestamp is not None:
            if pod.status.phase not in DONE:
                self.end(pod, self.sigterm_exit, self.last_words)
            elif pod.metadata.deletion_grace_period_seconds:  # otherwise only a finalizer keeps it
                self._remove(pod)
        elif self.run_all and pod.status.phase == "Pending":
            self.run(pod)

    def _now(self) -> str:
        return (datetime.now(UTC) + self.skew).isoformat()

    def _on(self, node: str) -> list[V1Pod]:
        return list(self._core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={node}").items)

    def _remove(self, pod: V1Pod) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}}
        with _unless_gone():
            self._core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, body=options)

    def _report(self, pod: V1Pod, **status: object) -> None:
        body = {"metadata": {"uid": pod.metadata.uid}, "status": status}
        with _unless_gone():
            self._core.patch_namespaced_pod_status(pod.metadata.name, pod.metadata.namespace, body)


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """As for a kubelet, it is no error if the pod was deleted meanwhile, or if another pod has its name."""
    try:
        yield
    except ApiException as error:
        if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise


def _condition(now: str, kind: str, holds: bool, reason: str = "", message: str = "") -> Fields:
    return {
        "type": kind,
        "status": str(holds),
        "reason": reason,
        "message": message,
        "lastTransitionTime": now,
    }


def _conditions(now: str, ready: bool) -> list[Fields]:
    """The list is merged by type: the scheduler's condition and DisruptionTarget stay."""
    kinds = {"Initialized": True, "ContainersReady": ready, "Ready": ready}
    return [_condition(now, kind, holds) for kind, holds in kinds.items()]


def _container(container: V1Container, state: Fields) -> Fields:
    """The status of a container in that state."""
    running = "running" in state
    return {
        "name": container.name,
        "image": container.image,
        "imageID": container.image if "waiting" not in state else "",
        "restartCount": 0,
        "ready": running,
        "started": running,
        "state": state,
    }


def _terminated(now: str, exit_code: int = 0, message: str = "", reason: str = "") -> Fields:
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason or ("Error" if exit_code else "Completed"),
            "message": message,
            "startedAt": now,
            "finishedAt": now,
        }
    }
