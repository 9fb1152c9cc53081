"""The Service that no job owns: it exists while workers need it, even if it was deleted, and goes with the last job."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from tailorpo_operator.api import naming
from tailorpo_operator.children import indexed_job
from tailorpo_operator.controller.rendezvous_service import Rendezvous
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.kube.transport import RefusedError, UnreachableError
from tests.cluster.api import Kubectl
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import PodDriver
from tests.cluster.waiting import until
from tests.operator.kube.test_cache import KEY, meta, raw_attempt_job, raw_job
from tests.operator.operating import OperatorProcess, Watched, job
from tests.operator.stories import SPEC

SERVICE = f"service/{naming.RENDEZVOUS}"

Object = dict[str, Any]
STRANGER: Object = {"clusterIP": "10.0.0.7", "selector": {"app": "another"}}
Story = Callable[["Server", Rendezvous, Cache], Awaitable[None]]


def raw_service(version: int = 5, uid: str = "service-5") -> Object:
    return {**indexed_job.rendezvous("team"), "metadata": meta(naming.RENDEZVOUS, uid, version, labels=naming.COMMON)}


def of_two() -> Object:
    return raw_job() | {"spec": SPEC | {"workers": 2}}


class Server:
    """Has at most one Service, and jobs. before: called while a request is in flight."""

    def __init__(self) -> None:
        self.service: Object | None = None
        self.jobs: list[Object] = []
        self.asked: list[str] = []
        self.before: Callable[[str], Awaitable[None] | None] = lambda what: None
        self._version = 100
        self.cluster = AsyncMock(spec=KubeClient)
        self.cluster.create_service.side_effect = self._create
        self.cluster.delete_service.side_effect = self._delete
        self.cluster.list_jobs.side_effect = self._jobs

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        if (pending := self.before(what)) is not None:
            await pending
        await asyncio.sleep(0)

    async def _create(self, service: Object) -> Object:
        await self._ask("create")
        if self.service is None:
            self._version += 1
            self.service = {**service, **raw_service(self._version, f"service-{self._version}")}
        return self.service

    async def _delete(self, namespace: str, name: str, uid: str) -> None:
        await self._ask("delete")
        if self.service is not None and self.service["metadata"]["uid"] == uid:
            self.service = None

    async def _jobs(self, namespace: str, use: Callable[[Object], object]) -> int:
        await self._ask("list")
        for raw in self.jobs:
            use(raw)
        return self._version


def reported(story: Story) -> Server:
    server, cache = Server(), Cache()

    async def run() -> None:
        await story(server, Rendezvous(server.cluster, cache, lambda: True), cache)

    asyncio.run(run())
    return server


# Without a cluster


def test_it_is_made_once_however_many_need_it_at_a_time() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        await asyncio.gather(*(rendezvous.ensure("team") for _ in range(10)))
        await rendezvous.ensure("team")

    assert reported(story).asked == ["create"]


def test_a_stranger_of_its_name_is_refused_and_left_alone() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = {**raw_service(), "metadata": meta(naming.RENDEZVOUS, "other", 5), "spec": STRANGER}
        for _ in range(2):
            with pytest.raises(RefusedError, match="exists, and does not lead to the first workers of jobs") as raised:
                await rendezvous.ensure("team")
            assert raised.value.reason == "NameTaken"
        await rendezvous.reconcile("team")

    assert reported(story).asked == ["create", "create"]


def test_it_goes_when_neither_a_job_nor_a_gang_needs_it() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        cache.put_job(of_two())
        cache.put_attempt_job(raw_attempt_job())
        await rendezvous.ensure("team")
        await rendezvous.reconcile("team")
        cache.drop_attempt_job(raw_attempt_job())
        await rendezvous.reconcile("team")
        assert server.asked == ["create"], "its job is still there"
        cache.put_attempt_job(raw_attempt_job(attempt=2))
        cache.drop_job(of_two())
        await rendezvous.reconcile("team")
        assert server.asked == ["create"], "its gang is still there"
        cache.drop_attempt_job(raw_attempt_job(attempt=2))
        await rendezvous.reconcile("team")
        await rendezvous.reconcile("team")

    assert reported(story).asked == ["create", "list", "delete"]


@pytest.mark.parametrize(("workers", "asked"), [(1, ["list", "delete"]), (2, ["list"])])
def test_a_job_that_no_watch_has_shown_keeps_it(workers: int, asked: list[str]) -> None:
    """For example after a start, when the watch of Services is the first to report."""

    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = raw_service()
        server.jobs = [{"metadata": meta("cats", "cats", 7), "spec": {"workers": workers}}]
        rendezvous.put(server.service)
        await rendezvous.reconcile("team")

    assert reported(story).asked == asked


@pytest.mark.parametrize(("when", "asked"), [("list", ["list"]), ("delete", ["list", "delete", "create"])])
def test_an_attempt_that_begins_while_it_is_deleted_has_one(when: str, asked: list[str]) -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = raw_service()
        rendezvous.put(server.service)

        async def begin(what: str) -> None:
            if what == when:
                await rendezvous.ensure("team")
                cache.put_job(of_two())
                cache.put_attempt_job(raw_attempt_job())

        server.before = begin
        await rendezvous.reconcile("team")
        if rendezvous.queue:
            await rendezvous.reconcile(await rendezvous.queue.get())
        assert server.service is not None

    assert reported(story).asked == asked


@pytest.mark.parametrize("workers", ["auto", None, {}])
def test_a_job_that_another_definition_let_in_is_no_reason(workers: Any) -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = raw_service()
        server.jobs = [{"metadata": meta("cats", "cats", 7), "spec": {"workers": workers}}, {"metadata": {}}]
        cache.put_job(server.jobs[0])
        rendezvous.put(server.service)
        await rendezvous.reconcile("team")

    assert reported(story).asked == ["list", "delete"]


def test_one_that_somebody_else_made_is_used_and_left_alone() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = raw_service()
        server.service["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
        await rendezvous.ensure("team")
        await rendezvous.ensure("team")
        await rendezvous.reconcile("team")

    assert reported(story).asked == ["create"]


def test_what_is_heard_of_a_job_is_looked_at_where_it_may_matter() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        def looks() -> bool:
            before = len(rendezvous.queue)
            rendezvous.enqueue(KEY)
            return len(rendezvous.queue) > before

        assert not looks()
        cache.put_job(of_two())
        assert not looks(), "nobody needs it yet"
        cache.put_attempt_job(raw_attempt_job())
        assert looks(), "another operator may have made the gang"
        await rendezvous.reconcile(await rendezvous.queue.get())
        rendezvous.queue.done("team")
        assert not looks()
        cache.drop_job(of_two())
        assert looks()

    assert reported(story).asked == ["create"]


def test_a_deletion_that_fails_is_tried_again() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        server.service = raw_service()
        rendezvous.put(server.service)

        def away(what: str) -> None:
            if server.asked.count("delete") == 1:
                raise UnreachableError("no answer")

        server.before = away
        with pytest.raises(UnreachableError):
            await rendezvous.reconcile("team")
        server.before = lambda what: None
        await rendezvous.reconcile("team")
        assert server.service is None

    assert reported(story).asked == ["list", "delete", "list", "delete"]


@pytest.mark.parametrize(("attempt_job", "asked"), [
    (raw_attempt_job(), ["create"]),
    ({**raw_attempt_job(), "status": {"conditions": [{"type": "Complete", "status": "True"}]}}, []),
    ({**raw_attempt_job(), "spec": {"completions": 1}}, []),
])  # fmt: skip
def test_deleted_by_somebody_it_comes_again_while_a_gang_may_need_it(attempt_job: Object, asked: list[str]) -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        rendezvous.put(raw_service())
        cache.put_job(of_two())
        cache.put_attempt_job(attempt_job)
        rendezvous.drop(raw_service())
        await rendezvous.reconcile("team")

    assert reported(story).asked == asked


def test_an_answer_that_comes_after_its_deletion_brings_nothing_back() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        rendezvous.drop(raw_service(uid="service-101", version=102))
        await rendezvous.ensure("team")  # its answer, which comes late, has that uid
        server.service = None
        await rendezvous.ensure("team")

    assert reported(story).asked == ["create", "create"]


def test_a_list_tells_what_went() -> None:
    async def story(server: Server, rendezvous: Rendezvous, cache: Cache) -> None:
        rendezvous.put(raw_service(version=5))
        assert list(rendezvous.drop_unlisted({"service-5"}, 9, None)) == []
        assert list(rendezvous.drop_unlisted(set(), 4, None)) == [], "it is newer than the list"
        assert list(rendezvous.drop_unlisted(set(), 9, "another")) == []
        assert list(rendezvous.drop_unlisted(set(), 9, "team")) == [("team", naming.RENDEZVOUS)]
        await rendezvous.ensure("team")

    assert reported(story).asked == ["create"]


# On a control plane


def uid(kubectl: Kubectl) -> str:
    return kubectl("get", SERVICE, "--ignore-not-found", "--output=jsonpath={.metadata.uid}")


def test_one_for_all_jobs_of_a_namespace_goes_with_the_last(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    mark = control_plane.audit.mark()
    animals, plants = (Watched(kubectl, pod_driver, job(name)) for name in ("animals", "plants"))
    Watched(kubectl, pod_driver, job("alone", workers=1)).run(1)
    animals.run(1)
    plants.run(1)
    kubectl("delete", "tpj", "animals")
    plants.finish(1)
    assert uid(kubectl)
    kubectl("delete", "tpj", "plants")
    until(lambda: not uid(kubectl), "it goes with the last job of several workers")
    assert kubectl.json("get", "tpj", "alone")["status"]["phase"] == "Running"
    asked = [each for each in control_plane.audit.since(mark) if each.namespace == kubectl.namespace]
    writes = [each.verb for each in asked if each.resource == "services" and each.verb in ("create", "delete")]
    assert writes == ["create", "delete"]


def test_it_comes_again_at_once(kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.pods(1)
    before = uid(kubectl)
    kubectl("delete", SERVICE)
    until(lambda: uid(kubectl) not in ("", before), "the gang that has not begun can find itself")
    watched.run(1)


def test_what_happens_to_it_while_no_operator_runs(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    watched = Watched(kubectl, pod_driver, job())
    watched.pods(1)
    operator.kill()
    kubectl("delete", SERVICE)
    operator.start()
    until(lambda: uid(kubectl), "it is back")
    operator.kill()
    kubectl("delete", "tpj", "--all")
    until(lambda: not kubectl.json("get", "jobs")["items"], "nobody needs it")
    operator.start()
    until(lambda: not uid(kubectl), "it is gone")


def test_a_service_of_its_name_that_leads_elsewhere(kubectl: Kubectl, pod_driver: PodDriver, operator: Any) -> None:
    ports = [{"port": 80}]
    spec = {"selector": {"app": "another"}, "ports": ports}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": naming.RENDEZVOUS}, "spec": spec})
    watched = Watched(kubectl, pod_driver, job())

    def taken() -> bool:
        return bool(watched.condition("PodsReady").get("reason") == "NameTaken")

    until(taken, "it says why it does not begin")
    assert f"Service {naming.RENDEZVOUS} exists" in watched.status["message"]
    kubectl("delete", SERVICE)
    watched.run(1)
    kubectl("delete", "tpj", "animals")
    until(lambda: not uid(kubectl), "it is gone")


def test_a_service_of_its_name_stays_with_its_owner(
    kubectl: Kubectl, pod_driver: PodDriver, operator: OperatorProcess
) -> None:
    """Nothing of it is ours, so nothing is done to it after the last job."""
    spec = {"selector": {"app": "another"}, "ports": [{"port": 80}]}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": naming.RENDEZVOUS}, "spec": spec})
    watched = Watched(kubectl, pod_driver, job("alone", workers=1))
    watched.run(1)
    watched.finish(1)
    kubectl("delete", "tpj", "alone")
    until(lambda: not kubectl.json("get", "tpj,jobs,pods")["items"], "the job is gone")
    assert json.loads(kubectl("get", SERVICE, "--output=json"))["spec"]["selector"] == {"app": "another"}
