"""When a status is written: all of many new jobs get their pods first, but the end of an attempt is never deferred."""

import asyncio
from typing import Any
from unittest.mock import AsyncMock

from tailorpo_operator.api.naming import Key
from tailorpo_operator.controller.reconciler import Reconciler
from tailorpo_operator.kube.cache import Cache
from tailorpo_operator.kube.client import KubeClient
from tailorpo_operator.planning.backoff import Retries
from tailorpo_operator.settings import Settings
from tests.operator.kube.test_cache import KEY, raw_attempt_job, raw_ended_pod, raw_job
from tests.operator.stories import NOON

FIRST = {"number": 1, "start": "2026-01-01T12:00:00Z"}
SETTINGS = Settings(retries=Retries(first=0))


def reconcile(job: dict[str, Any], attempt_jobs: list[dict[str, Any]], pods: list[dict[str, Any]]) -> AsyncMock:
    """One reconcile of a job while another new one waits; returns the mock of the cluster."""
    cluster = AsyncMock(spec=KubeClient)
    cluster.get_job.return_value = job
    cluster.serves_group.return_value = False
    cluster.list_children.return_value = attempt_jobs, pods, 20

    def created(child: dict[str, Any]) -> dict[str, Any]:
        meta = {"uid": child["metadata"]["name"], "resourceVersion": "30", "creationTimestamp": "2026-01-01T12:00:00Z"}
        return {**child, "metadata": {**child["metadata"], **meta}}

    cluster.create_attempt_job.side_effect = created
    cluster.create_service.side_effect = created
    cluster.write_status.side_effect = lambda raw, status: {**job, "status": status}

    async def story() -> None:
        cache = Cache()
        cache.put_job(job)
        for attempt_job in attempt_jobs:
            cache.put_attempt_job(attempt_job)
        for pod in pods:
            cache.put_pod(pod, NOON)
        reconciler = Reconciler(cluster, cache, SETTINGS)
        reconciler.queue.add(KEY)
        reconciler.queue.add(Key("team", "another"))
        await reconciler.reconcile(await reconciler.queue.get())

    asyncio.run(story())
    return cluster


def created_names(cluster: AsyncMock) -> list[str]:
    return [call.args[0]["metadata"]["name"] for call in cluster.create_attempt_job.await_args_list]


def test_a_new_job_is_told_of_after_those_that_wait_for_pods() -> None:
    cluster = reconcile(raw_job(), [], [])
    assert "animals-0001" in created_names(cluster)
    cluster.write_status.assert_not_awaited()
    cluster.create_event.assert_not_awaited()


def test_the_end_of_an_attempt_is_written_with_the_next_one() -> None:
    """Otherwise the next reconcile judges it again, finds pods of an unknown attempt, and deletes them."""
    job = raw_job() | {"status": {"phase": "Running", "attempts": [FIRST]}}
    pods = [raw_ended_pod(index=index) for index in (0, 1)]
    cluster = reconcile(job, [raw_attempt_job()], pods)
    assert created_names(cluster)[-1] == "animals-0002"
    status = cluster.write_status.await_args.args[1]
    assert [each["number"] for each in status["attempts"]] == [1, 2]
    assert "end" in status["attempts"][0]


def test_a_job_applied_again_while_the_last_is_found_gone_is_not_forgotten() -> None:
    job = raw_job() | {"status": {"phase": "Running", "attempts": [FIRST]}}
    cluster, cache = AsyncMock(spec=KubeClient), Cache()

    def gone(namespace: str, name: str) -> None:
        cache.drop_job(job)
        cache.put_job(raw_job(40, uid="again"))

    cluster.get_job.side_effect = gone

    async def story() -> None:
        cache.put_job(job)
        await Reconciler(cluster, cache, SETTINGS).reconcile(KEY)

    asyncio.run(story())
    assert cache.jobs[KEY].uid == "again"
