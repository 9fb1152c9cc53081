"""A job on a real control plane, and the events of a walk. An event that is impossible at its time is skipped."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client import V1Job, V1Pod
from kubernetes.client.exceptions import ApiException

from tailorpo_operator.api import naming
from tailorpo_operator.api.types import GROUP, PLURAL, VERSION
from tailorpo_trainer.spec.job import Training
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import DONE, PodDriver
from tests.cluster.waiting import until
from tests.operator.operating import job, last_words
from tests.operator.walks import laws, truth
from tests.operator.walks.replicas import Replicas
from tests.operator.walks.witness import Witness

TRUTHFUL_SECONDS = 30.0
"""Until a status agrees with the cluster after the last change; longer on a busy machine."""
SOON = 5.0
"""Seconds to wait for pods to have nodes, where they may come."""
REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
NODES = 2
NAME = "animals"

Object = dict[str, Any]


@dataclass
class Stage:
    """The control plane and operators that all walks share."""

    plane: ControlPlane
    replicas: Replicas

    @classmethod
    @contextlib.contextmanager
    def of(cls, plane: ControlPlane, user: Path, folder: Path) -> Iterator["Stage"]:
        kubectl = plane.kubectl("tailorpo-system")

        def forget_lease() -> None:
            kubectl("delete", "lease", "tailorpo-operator", "--ignore-not-found")

        _collects_garbage(plane.kubectl())
        with Replicas(user, folder, forget_lease) as replicas:
            yield cls(plane, replicas)


class LawError(Exception):
    """An invariant is violated. Not an AssertionError, after which `until` would retry."""


class World:
    """One walk's namespace, nodes, job and witness."""

    def __init__(self, stage: Stage, count: int, skew: float, spec: Object) -> None:
        self.replicas, self._document = stage.replicas, job(NAME, **spec)
        self._plane, self._stack = stage.plane, contextlib.ExitStack()
        self._step = 0
        self._left: set[str] = set()
        try:
            self._open(count, skew)
        except BaseException:
            self.close()
            raise

    def _open(self, count: int, skew: float) -> None:
        api = self._stack.enter_context(self._plane.api())
        self._core, self._batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self.namespace = f"walk-{secrets.token_hex(4)}"
        self._core.create_namespace({"metadata": {"name": self.namespace}})
        self._stack.callback(self._core.delete_namespace, self.namespace)
        driving = self._stack.enter_context(self._plane.api(self._plane.user("pod-driver", ["system:masters"])))
        self.driver = self._stack.enter_context(PodDriver(driving))
        self.nodes = [self.driver.add_node(f"{self.namespace}-node-{number}") for number in range(NODES)]
        watching = self._stack.enter_context(self._plane.api(self._plane.user("witness", ["system:masters"])))
        self.witness = self._stack.enter_context(Witness(watching, self.namespace, laws.Laws()))
        until(lambda: self._has_account(), f"pods can be made in {self.namespace}")
        self._mark = self._plane.audit.mark()
        self.replicas.begin(count, skew)
        self.apply()

    def close(self) -> None:
        self._stack.close()

    # Checks

    def check(self) -> None:
        """Raises LawError if an observed change violates an invariant."""
        _lawful(self.witness.broken)

    def wait(self, changes: int, seconds: float) -> None:
        """Waits for so many changes, at most for so many seconds."""
        before = len(self.witness.history)
        with contextlib.suppress(AssertionError):
            until(lambda: len(self.witness.history) >= before + changes, "things happen", seconds)

    def settle(self) -> None:
        """With all operators running and no more changes, the status soon agrees with the cluster."""
        self.replicas.heal()
        until(self._truthful, "the status says what the cluster is", settle_seconds())
        _lawful(laws.look_back(self.witness.history))

    def _truthful(self) -> bool:
        self.check()
        seen, there = self.witness.now(), self._there()
        for kind, raw_objects in there.items():
            known = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in seen[kind]}
            listed = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in raw_objects}
            assert known == listed, f"{kind}s are seen as {known}, and are {listed}"
        dark = [node for node in self.nodes if not self.driver.alive(node)]
        if not there["TailorPOJob"]:
            last = self._last_job()
            assert laws.over(last), f"the job is gone, and was {last['status'].get('phase')}"
            stay = [each for each in there["Pod"] if not truth.waits_for_power(each, dark)]
            assert not stay, f"the job is gone, and there are {len(stay)} pods"
            assert there["Job"] or not there["Service"], "the job is gone, and its Service is not"
            return True
        found = list(truth.lies(there["TailorPOJob"][0], there["Job"], there["Pod"], self._left, dark))
        found += truth.unnamed(there["Job"], there["Service"])
        assert not found, f"{'; '.join(found)}: {there['TailorPOJob'][0].get('status')}"
        return True

    def finish(self) -> None:
        """Lets the job end; all changes were right, and nothing remains after its deletion."""
        self.driver.skew = timedelta()
        for node in self.nodes:
            self.recover(node)
        self.suspend(False)
        for pod in self._core.list_namespaced_pod(self.namespace).items:
            if pod.metadata.labels["batch.kubernetes.io/controller-uid"] in self._left:
                self._delete(pod, {})
        self.settle()
        until(self._finishing, "the job comes to an end", 2 * settle_seconds())
        self.settle()
        _lawful(self._refusals())
        self.delete_job()
        until(self._nothing_left, "all that belongs to the job is gone", 2 * settle_seconds())
        self.check()

    def _finishing(self) -> bool:
        self.check()
        found = self._job()
        if found is None or laws.over(found):
            return True
        for pod in self._pods():
            if pod.status.phase == "Pending":
                self._report(pod, self.driver.run)
        pods = self._pods()
        if len(pods) == self._workers() and all(pod.status.phase in ("Running", "Succeeded") for pod in pods):
            for pod in pods:
                if pod.status.phase == "Running":
                    self._end(pod, 0)
        return False

    def _nothing_left(self) -> bool:
        left = {kind: [each["metadata"]["name"] for each in raw_objects] for kind, raw_objects in self._there().items()}
        assert not any(left.values()), left
        return True

    def _refusals(self) -> list[str]:
        """Requests of the operator that the API server had to refuse."""
        asked = self._plane.audit.since(self._mark)
        ours = [each for each in asked if each.namespace == self.namespace and "tailorpo-operator" in each.user]
        return [str(each) for each in ours if each.code in REFUSED]

    def story(self) -> str:
        return self.witness.story()

    # Actions of users

    def apply(self) -> None:
        self.witness.act("kubectl apply")
        with _unless_refused(HTTPStatus.CONFLICT):
            self._custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, self._document)

    def edit(self, change: Object) -> None:
        self.witness.act(f"edit {json.dumps(change)}")
        with _unless_refused(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY):
            self._custom.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                NAME,
                {"spec": change},
                _content_type="application/merge-patch+json",
            )

    def suspend(self, value: bool) -> None:
        self.edit({"runPolicy": {"suspend": value}})

    def train_longer(self) -> None:
        if (found := self._job()) is not None:
            self.edit({"training": {"iterations": found["spec"]["training"]["iterations"] + 10}})

    def delete_job(self) -> None:
        self.witness.act("kubectl delete tpj")
        with _unless_refused(HTTPStatus.NOT_FOUND):
            self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, NAME)

    def delete_attempt_job(self, back: int, policy: str) -> None:
        """back: 0 for the newest."""
        attempt_jobs = self._attempt_jobs()
        if back < len(attempt_jobs):
            name, uid = attempt_jobs[-1 - back].metadata.name, attempt_jobs[-1 - back].metadata.uid
            self.witness.act(f"kubectl delete job {name} ({policy})")
            with _unless_refused(HTTPStatus.NOT_FOUND):
                self._batch.delete_namespaced_job(name, self.namespace, propagation_policy=policy)
            self._left |= {uid} if policy == "Orphan" else set()

    def delete_service(self) -> None:
        self.witness.act("kubectl delete service")
        with _unless_refused(HTTPStatus.NOT_FOUND):
            self._core.delete_namespaced_service(naming.RENDEZVOUS, self.namespace)

    def delete_pod(self, number: int, *, force: bool) -> None:
        if (pod := self._pod(number)) is not None:
            self.witness.act(f"kubectl delete pod {pod.metadata.name}" + (" --force" if force else ""))
            self._delete(pod, {"gracePeriodSeconds": 0} if force else {})

    def evict(self, number: int) -> None:
        if (pod := self._pod(number)) is not None:
            self.witness.act(f"kubectl drain, of {pod.metadata.name}")
            with _unless_refused(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                body = {"metadata": {"name": pod.metadata.name, "namespace": self.namespace}}
                self._core.create_namespaced_pod_eviction(pod.metadata.name, self.namespace, body)

    # Actions of nodes

    def run(self) -> None:
        """All pods of the newest attempt run, once they have nodes."""
        pods = self._scheduled()
        self.witness.act(f"{[pod.metadata.name for pod in pods]} run")
        for pod in pods:
            if pod.status.phase == "Pending":
                self._report(pod, self.driver.run)

    def run_one(self, number: int) -> None:
        pods = self._scheduled()
        if number < len(pods):
            self.witness.act(f"{pods[number].metadata.name} runs")
            self._report(pods[number], self.driver.run)

    def end(self, number: int, code: int) -> None:
        """A worker's container ends, if it runs or may."""
        if (pod := self._running(number)) is not None:
            self.witness.act(f"{pod.metadata.name} ends with {code}")
            self._end(pod, code)

    def oom(self, number: int) -> None:
        if (pod := self._running(number)) is not None:
            self.witness.act(f"{pod.metadata.name} is killed for its memory")
            self._report(pod, self.driver.oom)

    def succeed(self) -> None:
        """All workers succeed."""
        pods = [pod for number in range(self._workers()) if (pod := self._running(number)) is not None]
        self.witness.act(f"{[pod.metadata.name for pod in pods]} end with 0")
        for pod in pods:
            self._end(pod, 0)

    def disrupt(self, number: int, reason: str) -> None:
        if (pod := self._pod(number)) is not None:
            self.witness.act(f"{pod.metadata.name}: {reason}")
            self._report(pod, lambda pod: self.driver.disrupt(pod, reason))
            self._delete(pod, {})

    def run_short(self, number: int) -> None:
        """The node runs short of memory, and its kubelet evicts a pod."""
        if (pod := self._pod(number)) is not None:
            self.witness.act(f"{pod.metadata.name} is evicted by its kubelet")
            self._report(pod, self.driver.evict)

    def lose(self, node: str) -> None:
        self.witness.act(f"{node} loses its power")
        self.driver.lose(node)

    def not_ready(self, node: str) -> None:
        if self.driver.alive(node):
            self.witness.act(f"{node} is not ready")
            self.driver.not_ready(node)

    def recover(self, node: str) -> None:
        self.witness.act(f"{node} is back")
        self.driver.recover(node)

    # Helpers

    def _has_account(self) -> bool:
        accounts = self._core.list_namespaced_service_account(self.namespace).items
        return any(account.metadata.name == "default" for account in accounts)

    def _job(self) -> Object | None:
        found = self._custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL)["items"]
        return found[0] if found else None

    def _last_job(self) -> Object:
        return [each.raw for each in self.witness.history if each.kind == "TailorPOJob"][-1]

    def _there(self) -> dict[str, list[Object]]:
        """All objects, by kind, as JSON."""
        raw = self._core.api_client.sanitize_for_serialization
        jobs = self._custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL)["items"]
        services = self._core.list_namespaced_service(self.namespace).items
        return {
            "TailorPOJob": jobs,
            "Job": raw(self._attempt_jobs()),
            "Pod": raw(self._core.list_namespaced_pod(self.namespace).items),
            "Service": raw(services),
        }

    def _attempt_jobs(self) -> list[V1Job]:
        """By attempt."""
        return sorted(self._batch.list_namespaced_job(self.namespace).items, key=lambda each: str(each.metadata.name))

    def _pods(self) -> list[V1Pod]:
        """Those of the newest attempt, by index."""
        attempt_jobs = self._attempt_jobs()
        if not attempt_jobs:
            return []
        selector = f"batch.kubernetes.io/controller-uid={attempt_jobs[-1].metadata.uid}"
        pods = self._core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(pods, key=lambda each: str(each.metadata.name))

    def _pod(self, number: int) -> V1Pod | None:
        """One that has not ended, if there is one."""
        pods = [pod for pod in self._pods() if pod.status.phase not in DONE]
        return pods[number % len(pods)] if pods else None

    def _workers(self) -> int:
        attempt_jobs = self._attempt_jobs()
        return int(attempt_jobs[-1].spec.completions) if attempt_jobs else 0

    def _scheduled(self) -> list[V1Pod]:
        """The pods of the newest attempt; waits until all have living nodes, if that can be soon."""

        def check() -> list[V1Pod]:
            pods = self._pods()
            assert len(pods) == self._workers(), "not all are there"
            assert all(self.driver.alive(pod.spec.node_name) for pod in pods), "not all have nodes"
            return pods

        with contextlib.suppress(AssertionError):
            return until(check, "pods have nodes", SOON if self._coming() else 0.0)
        return [pod for pod in self._pods() if self.driver.alive(pod.spec.node_name)]

    def _coming(self) -> bool:
        """Whether there is reason to wait for pods."""
        found = self._job()
        waits = found is not None and not laws.over(found) and not found["spec"].get("runPolicy", {}).get("suspend")
        return waits and self.replicas.acting is not None and all(map(self.driver.alive, self.nodes))

    def _running(self, number: int) -> V1Pod | None:
        """A worker that runs; a pending one is started first."""
        pods = self._scheduled()
        if number >= len(pods) or pods[number].status.phase in DONE:
            return None
        if pods[number].status.phase == "Pending":
            self._report(pods[number], self.driver.run)
        return pods[number]

    def _end(self, pod: V1Pod, code: int) -> None:
        self._step += 1
        document = json.loads(pod.metadata.annotations[naming.DOCUMENT])
        of = document["spec"].get("training", {}).get("iterations", Training().iterations)
        message = last_words(code, step=of if code == 0 else self._step, of=of)
        self._report(pod, lambda pod: self.driver.end(pod, code, message))

    def _report(self, pod: V1Pod, report: Callable[[V1Pod], None]) -> None:
        """Reports as the pod's kubelet would; too late if the pod has ended meanwhile."""
        if self.driver.alive(pod.spec.node_name):
            with _unless_refused(HTTPStatus.UNPROCESSABLE_ENTITY):
                report(pod)

    def _delete(self, pod: V1Pod, options: Object) -> None:
        with _unless_refused(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            body = {"preconditions": {"uid": pod.metadata.uid}, **options}
            self._core.delete_namespaced_pod(pod.metadata.name, self.namespace, body=body)


def _collects_garbage(kubectl: Kubectl) -> None:
    """Waits until the garbage collector knows TailorPOJobs: it reads new definitions every 30 s."""
    kubectl.apply(job("probe", runPolicy={"suspend": True}))
    uid = kubectl.json("get", "tpj", "probe")["metadata"]["uid"]
    owner = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TailorPOJob", "name": "probe", "uid": uid}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe", "ownerReferences": [owner]}, "data": {}}
    )
    kubectl("delete", "tpj", "probe")
    until(lambda: not kubectl("get", "configmap", "probe", "--ignore-not-found"), "children of a job go with it")


@contextlib.contextmanager
def _unless_refused(*known: HTTPStatus) -> Iterator[None]:
    """Ignores refusals with these codes: the request came too late, or is impossible now."""
    try:
        yield
    except ApiException as error:
        if error.status not in known:
            raise


def _lawful(broken: Iterable[str]) -> None:
    if found := list(broken):
        raise LawError("\n".join(found))


def settle_seconds() -> float:
    return TRUTHFUL_SECONDS * min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 3.0)
